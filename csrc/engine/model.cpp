#include "engine/model.h"

#include <utility>

#include "engine/model_packed.h"

namespace dvt {

Model::Model(std::unique_ptr<PackedModel> packed) : packed_(std::move(packed)) {}
Model::~Model() = default;

bool Model::has_vit() const { return packed_->vit.has_value(); }
bool Model::has_denoiser() const { return packed_->denoiser.has_value(); }
int64_t Model::dim() const { return packed_->vit ? packed_->vit->dim : packed_->denoiser->dim; }
Dtype Model::dtype() const { return packed_->dtype; }
const std::string& Model::metadata() const { return packed_->metadata; }

Status Model::create(const EngineWeights& weights, Dtype dtype, std::shared_ptr<const Model>* out) {
  if (dtype == Dtype::uint8)
    return invalid_argument("weights can be packed as float32, float16 or bfloat16, not as ", dtype_name(dtype));
  DVT_RETURN_IF_ERROR(isa_status());
  auto packed = std::make_unique<PackedModel>();
  packed->isa = active_isa();
  packed->dtype = dtype;
  packed->metadata = weights.metadata;
  if (weights.patch_embed) {
    const PatchEmbedWeights& from = *weights.patch_embed;
    PackedPatchEmbed& to = packed->patch_embed.emplace();
    to.patch = from.patch;
    to.stride = from.stride;
    to.linear = pack_linear(from.linear, dtype, packed->memory);
    to.norm = {from.norm.kind, from.norm.eps, from.norm.weight, from.norm.bias};
    to.image_size = from.image_size;
    to.mean = from.mean;
    to.std = from.std;
  }
  if (weights.vit) packed->vit = pack_transformer(*weights.vit, dtype, packed->memory);
  if (weights.denoiser) packed->denoiser = pack_transformer(*weights.denoiser, dtype, packed->memory);
  if (!packed->vit && !packed->denoiser) return invalid_argument("an engine needs a ViT, a denoiser or both");
  *out = std::shared_ptr<const Model>(new Model(std::move(packed)));
  return Status();
}

Status Model::from_bytes(const void* data, size_t size, Dtype dtype, std::shared_ptr<const Model>* out) {
  EngineWeights weights;
  DVT_RETURN_IF_ERROR(read_engine_weights(data, size, &weights));
  return create(weights, dtype, out);
}

Status Model::from_file(const std::string& path, Dtype dtype, std::shared_ptr<const Model>* out) {
  EngineWeights weights;
  DVT_RETURN_IF_ERROR(read_engine_file(path, &weights));
  const Status status = create(weights, dtype, out);
  return status.ok() ? status : Status(status.code(), format(path, ": ", status.message()));
}

}  // namespace dvt

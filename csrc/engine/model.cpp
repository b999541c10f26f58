#include "engine/model.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
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
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (!file) return invalid_argument(path, ": ", std::strerror(errno));
  // Its size may be a lie (a pipe has none, a folder the largest number): read until there is no more.
  constexpr long kMaxFile = 1L << 46;
  Buffer<char> bytes;
  size_t size = 0, capacity = 0;
  if (std::fseek(file.get(), 0, SEEK_END) == 0) {
    const long end = std::ftell(file.get());
    if (end > 0 && end < kMaxFile) capacity = static_cast<size_t>(end) + 1;
    std::rewind(file.get());
  }
  if (capacity == 0) capacity = size_t{1} << 20;
  for (;;) {
    Buffer<char> larger;
    char* to = larger.at_least(static_cast<int64_t>(capacity));
    if (size > 0) std::memcpy(to, bytes.data(), size);
    size += std::fread(to + size, 1, capacity - size, file.get());
    bytes = std::move(larger);
    if (size < capacity) break;
    capacity *= 2;
  }
  if (std::ferror(file.get())) return invalid_argument(path, ": ", std::strerror(errno));
  const Status status = from_bytes(bytes.data(), size, dtype, out);
  return status.ok() ? status : Status(status.code(), format(path, ": ", status.message()));
}

}  // namespace dvt

#include "engine/cuda/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/half.h"
#include "transformer/attention/attention.h"
#include "transformer/attention/attention_cuda.h"

namespace dvt::cuda {
namespace {

// What is going to be on the device, laid out in main memory.
class Staging {
 public:
  size_t reserve(size_t bytes) {
    const size_t at = bytes_.size();
    bytes_.resize(at + (bytes + Layout::kAlignment - 1) / Layout::kAlignment * Layout::kAlignment);
    return at;
  }
  template <class T>
  T* at(size_t offset) {
    return reinterpret_cast<T*>(bytes_.data() + offset);
  }
  // Floats, and zeros up to a multiple of 4 of them.
  size_t put(const std::vector<float>& values) {
    const size_t offset = reserve(static_cast<size_t>(row_floats(static_cast<int64_t>(values.size()))) * sizeof(float));
    std::memcpy(bytes_.data() + offset, values.data(), values.size() * sizeof(float));
    return offset;
  }
  const std::vector<char>& bytes() const { return bytes_; }

 private:
  std::vector<char> bytes_;
};

// Which source row or column each packed one is; -1: zeros.
using Places = std::vector<int64_t>;

Places count_up(int64_t n) {
  Places places(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) places[static_cast<size_t>(i)] = i;
  return places;
}
// Heads of `dim` channels, each padded.
Places padded_heads(int64_t heads, int64_t dim, int64_t padded) {
  Places places(static_cast<size_t>(heads * padded), -1);
  for (int64_t i = 0; i < heads * dim; ++i) places[static_cast<size_t>(i / dim * padded + i % dim)] = i;
  return places;
}
// The gate and the value of a hidden channel beside each other.
Places gate_beside_value(int64_t hidden) {
  Places places(static_cast<size_t>(2 * hidden));
  for (int64_t i = 0; i < 2 * hidden; ++i) places[static_cast<size_t>(i)] = i / 2 + i % 2 * hidden;
  return places;
}

// To the nearest that has the 10 fraction bits of tf32, ties away from zero, as the device rounds.
float rounded_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

class Packer {
 public:
  Packer(EngineCompute compute, Staging* staging) : compute_(compute), staging_(staging) {}

  // before: a norm whose weight and bias belong to this product's input, or null. row_scale: of source rows, or empty.
  DeviceLinear linear(const LinearWeights& weights, const NormWeights* before = nullptr,
                      const std::vector<float>& row_scale = {}, Places rows = {}, Places columns = {}) const {
    if (rows.empty()) rows = count_up(weights.out);
    if (columns.empty()) columns = count_up(weights.in);
    DeviceLinear packed;
    packed.out = static_cast<int64_t>(rows.size());
    packed.in = static_cast<int64_t>(columns.size());
    packed.in_stride = round_up(packed.in, kRowPiece);
    const int64_t size = is_narrow(compute_) ? 2 : 4;
    packed.weight = staging_->reserve(static_cast<size_t>(packed.out * packed.in_stride * size));
    packed.bias = staging_->reserve(static_cast<size_t>(round_up(packed.out, kRowPiece)) * sizeof(float));
    const float* gain = before && !before->weight.empty() ? before->weight.data() : nullptr;
    const float* offset = before && !before->bias.empty() ? before->bias.data() : nullptr;
    for (int64_t r = 0; r < packed.out; ++r) {
      const int64_t o = rows[static_cast<size_t>(r)];
      if (o < 0) continue;
      const float* row = weights.weight.data() + o * weights.in;
      const double scale = row_scale.empty() ? 1.0 : row_scale[static_cast<size_t>(o)];
      for (size_t c = 0; c < columns.size(); ++c) {
        const int64_t i = columns[c];
        if (i < 0) continue;
        const double value = gain ? static_cast<double>(row[i]) * gain[i] : row[i];
        store(packed.weight, r * packed.in_stride + static_cast<int64_t>(c), static_cast<float>(scale * value));
      }
      double sum = weights.bias.empty() ? 0.0 : weights.bias[static_cast<size_t>(o)];
      if (offset)
        for (int64_t i = 0; i < weights.in; ++i) sum += static_cast<double>(row[i]) * offset[i];
      staging_->at<float>(packed.bias)[r] = static_cast<float>(scale * sum);
    }
    return packed;
  }

  // With its weight and bias, times `scale`.
  DeviceNorm norm(const NormWeights& norm, double scale = 1.0, int64_t dim = 0) const {
    DeviceNorm packed = without_affine(norm);
    if (norm.kind == NormWeights::Kind::none) return packed;
    std::vector<float> weight = norm.weight, bias = norm.bias;
    if (scale != 1.0) {
      if (weight.empty()) weight.assign(static_cast<size_t>(dim), 1.0f);
      for (std::vector<float>* values : {&weight, &bias})
        for (float& v : *values) v *= static_cast<float>(scale);
    }
    if (!weight.empty()) packed.weight = staging_->put(weight);
    if (!bias.empty()) packed.bias = staging_->put(bias);
    return packed;
  }
  // Its weight and bias go into the product that follows.
  static DeviceNorm without_affine(const NormWeights& norm) {
    DeviceNorm packed;
    packed.kind = norm.kind;
    packed.eps = norm.eps;
    return packed;
  }

 private:
  // Weights beyond the range of a narrow type become its largest number: they stay finite.
  void store(size_t offset, int64_t index, float x) const {
    switch (compute_) {
      case EngineCompute::float32: staging_->at<float>(offset)[index] = x; break;
      case EngineCompute::tf32: staging_->at<float>(offset)[index] = rounded_tf32(x); break;
      case EngineCompute::float16:
        staging_->at<uint16_t>(offset)[index] = float_to_half(std::clamp(x, -65504.0f, 65504.0f));
        break;
      case EngineCompute::bfloat16:
        staging_->at<uint16_t>(offset)[index] = float_to_bfloat16(std::clamp(x, -3.38e38f, 3.38e38f));
        break;
    }
  }

  EngineCompute compute_;
  Staging* staging_;
};

DeviceBlockWeights pack_block(const TransformerWeights& t, const BlockWeights& w, int64_t padded,
                              const Packer& packer) {
  DeviceBlockWeights block;
  const int64_t inner = t.heads * t.head_dim;
  // Queries carry the scale of the scores: from their product, or from their norm where there is one.
  const float scale = static_cast<float>(kLog2e / std::sqrt(static_cast<double>(t.head_dim)));
  std::vector<float> qkv_scale(static_cast<size_t>(3 * inner), 1.0f);
  if (w.q_norm.kind == NormWeights::Kind::none) {
    std::fill_n(qkv_scale.begin(), inner, scale);
  } else {
    block.q_norm = packer.norm(w.q_norm, scale, t.head_dim);
  }
  block.k_norm = packer.norm(w.k_norm);
  block.norm1 = Packer::without_affine(w.norm1);
  block.qkv = packer.linear(w.qkv, &w.norm1, qkv_scale, padded_heads(3 * t.heads, t.head_dim, padded));
  block.attention_norm = Packer::without_affine(w.attention_norm);
  block.proj = packer.linear(w.proj, &w.attention_norm, w.scale1, {}, padded_heads(t.heads, t.head_dim, padded));
  block.norm2 = Packer::without_affine(w.norm2);
  block.fc1 = packer.linear(w.fc1, &w.norm2, {}, t.gated ? gate_beside_value(t.hidden) : Places());
  block.mlp_norm = Packer::without_affine(w.mlp_norm);
  block.fc2 = packer.linear(w.fc2, &w.mlp_norm, w.scale2);
  return block;
}

Status pack_transformer(const TransformerWeights& weights, const Packer& packer, Staging* staging,
                        std::optional<DeviceTransformer>* out) {
  DeviceTransformer& t = out->emplace();
  t.dim = weights.dim;
  t.heads = weights.heads;
  t.head_dim = weights.head_dim;
  t.padded_dim = std::max<int64_t>(32, round_up(weights.head_dim, 16));
  t.hidden = weights.hidden;
  t.activation = weights.activation;
  t.gated = weights.gated;
  if (t.dim > kMaxRow)
    return Status(StatusCode::unsupported,
                  format("on a device a transformer must have at most ", kMaxRow, " channels, got ", t.dim));
  if (!weights.blocks.empty() && t.head_dim > kMaxHeadDim)
    return Status(StatusCode::unsupported,
                  format("on a device heads must have at most ", kMaxHeadDim, " channels, got ", t.head_dim));
  t.norm_pre = packer.norm(weights.norm_pre);
  t.norm = packer.norm(weights.norm);
  t.rotary = weights.rotary;
  t.pos_embed = weights.pos_embed;
  t.pos_grid = weights.pos_grid;
  t.extra_first = weights.extra_first;
  t.extra_count = static_cast<int64_t>(weights.extra_tokens.size()) / t.dim;
  if (t.extra_count > 0) {
    t.extra_tokens = staging->reserve(static_cast<size_t>(t.extra_count * row_floats(t.dim)) * sizeof(float));
    for (int64_t i = 0; i < t.extra_count; ++i)
      std::copy_n(weights.extra_tokens.data() + i * t.dim, t.dim,
                  staging->at<float>(t.extra_tokens) + i * row_floats(t.dim));
  }
  t.blocks.reserve(weights.blocks.size());
  for (const BlockWeights& block : weights.blocks) t.blocks.push_back(pack_block(weights, block, t.padded_dim, packer));
  return Status();
}

class ModelCuda final : public EngineModelCuda {
 public:
  explicit ModelCuda(std::shared_ptr<const DeviceModel> model) : model_(std::move(model)) {}

  bool has_vit() const override { return model_->vit.has_value(); }
  bool has_denoiser() const override { return model_->denoiser.has_value(); }
  int64_t dim() const override { return model_->dim(); }
  EngineCompute compute() const override { return model_->compute; }
  int device() const override { return model_->device; }
  const std::string& metadata() const override { return model_->metadata; }
  int64_t image_height() const override { return model_->patch_embed ? model_->patch_embed->image_size[0] : 0; }
  int64_t image_width() const override { return model_->patch_embed ? model_->patch_embed->image_size[1] : 0; }
  size_t bytes() const override { return model_->memory.bytes(); }
  Status create_session(const SessionOptions& options, std::unique_ptr<EngineSessionCuda>* out) const override {
    return cuda::create_session(model_, options, out);
  }

 private:
  std::shared_ptr<const DeviceModel> model_;
};

}  // namespace

RowNorm DeviceModel::norm(const DeviceNorm& norm) const {
  RowNorm row;
  row.kind = norm.kind == NormWeights::Kind::none    ? RowNorm::kNone
             : norm.kind == NormWeights::Kind::layer ? RowNorm::kLayer
                                                     : RowNorm::kRms;
  row.eps = norm.eps;
  if (norm.weight != DeviceNorm::kAbsent) row.weight = at<float>(norm.weight);
  if (norm.bias != DeviceNorm::kAbsent) row.bias = at<float>(norm.bias);
  return row;
}

Status make_device_model(const EngineWeights& weights, EngineCompute compute, int device,
                         std::shared_ptr<const DeviceModel>* out) {
  if (!weights.vit && !weights.denoiser) return invalid_argument("an engine needs a ViT, a denoiser or both");
  auto model = std::make_shared<DeviceModel>();
  model->device = device;
  model->compute = compute;
  model->metadata = weights.metadata;
  Staging staging;
  const Packer packer(compute, &staging);
  if (weights.patch_embed) {
    const PatchEmbedWeights& from = *weights.patch_embed;
    DevicePatchEmbed& to = model->patch_embed.emplace();
    to.patch = from.patch;
    to.stride = from.stride;
    to.image_size = from.image_size;
    to.mean = from.mean;
    to.std = from.std;
    to.linear = packer.linear(from.linear);
    to.norm = packer.norm(from.norm);
  }
  if (weights.vit) DVT_RETURN_IF_ERROR(pack_transformer(*weights.vit, packer, &staging, &model->vit));
  if (weights.denoiser) DVT_RETURN_IF_ERROR(pack_transformer(*weights.denoiser, packer, &staging, &model->denoiser));

  const DeviceGuard guard(device);
  DVT_RETURN_IF_ERROR(guard.status());
  const std::vector<char>& bytes = staging.bytes();
  DVT_RETURN_IF_ERROR(model->memory.allocate(std::max<size_t>(bytes.size(), 1), "the weights of an engine"));
  DVT_CUDA(cudaMemcpy(model->memory.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice),
           "copying the weights of an engine");
  // From pageable memory the call may return before the last part is there, and sessions have streams of their own.
  DVT_CUDA(cudaStreamSynchronize(nullptr), "copying the weights of an engine");
  *out = std::move(model);
  return Status();
}

Status create_engine_model(const EngineWeights& weights, EngineCompute compute, int device,
                           std::unique_ptr<EngineModelCuda>* out) {
  std::shared_ptr<const DeviceModel> model;
  DVT_RETURN_IF_ERROR(make_device_model(weights, compute, device, &model));
  *out = std::make_unique<ModelCuda>(std::move(model));
  return Status();
}

}  // namespace dvt::cuda

// Any bytes as an engine file: a sentence, or weights that fit each other and the file.
#include <cmath>

#include "engine/weights.h"
#include "fuzz.h"

namespace {

size_t values = 0;  // of all tensors

void check_values(const std::vector<float>& tensor) {
  for (const float value : tensor) FUZZ_REQUIRE(std::isfinite(value));
  values += tensor.size();
}

void check_optional(const std::vector<float>& tensor, int64_t size) {
  FUZZ_REQUIRE(tensor.empty() || tensor.size() == static_cast<size_t>(size));
  check_values(tensor);
}

void check_norm(const dvt::NormWeights& norm, int64_t size) {
  check_optional(norm.weight, size);
  check_optional(norm.bias, size);
  FUZZ_REQUIRE(norm.kind == dvt::NormWeights::Kind::layer || norm.bias.empty());
  FUZZ_REQUIRE(norm.kind != dvt::NormWeights::Kind::none || norm.weight.empty());
  FUZZ_REQUIRE(norm.eps >= 0 && norm.eps <= 1);
}

void check_linear(const dvt::LinearWeights& linear, int64_t in, int64_t out) {
  FUZZ_REQUIRE(linear.in == in && linear.out == out);
  FUZZ_REQUIRE(linear.weight.size() == static_cast<size_t>(in * out));
  check_values(linear.weight);
  check_optional(linear.bias, out);
}

void check_transformer(const dvt::TransformerWeights& t) {
  const int64_t inner = t.heads * t.head_dim;
  FUZZ_REQUIRE(t.dim > 0);
  FUZZ_REQUIRE(t.pos_embed.size() == static_cast<size_t>(t.pos_grid[0] * t.pos_grid[1] * t.dim));
  check_values(t.pos_embed);
  FUZZ_REQUIRE(t.extra_tokens.size() % static_cast<size_t>(t.dim) == 0);
  check_values(t.extra_tokens);
  if (t.rotary) {
    FUZZ_REQUIRE(t.rotary->bands.size() == static_cast<size_t>(t.head_dim / 4));
    FUZZ_REQUIRE(std::isfinite(t.rotary->offset) && std::isfinite(t.rotary->shift));
    for (const double reference : t.rotary->reference) FUZZ_REQUIRE(reference >= 0 && std::isfinite(reference));
    check_values(t.rotary->bands);
  }
  check_norm(t.norm_pre, t.dim);
  check_norm(t.norm, t.dim);
  for (const dvt::BlockWeights& block : t.blocks) {
    FUZZ_REQUIRE(inner > 0 && t.hidden > 0);
    check_norm(block.norm1, t.dim);
    check_linear(block.qkv, t.dim, 3 * inner);
    check_norm(block.q_norm, t.head_dim);
    check_norm(block.k_norm, t.head_dim);
    check_norm(block.attention_norm, inner);
    check_linear(block.proj, inner, t.dim);
    check_optional(block.scale1, t.dim);
    check_norm(block.norm2, t.dim);
    check_linear(block.fc1, t.dim, t.gated ? 2 * t.hidden : t.hidden);
    check_norm(block.mlp_norm, t.hidden);
    check_linear(block.fc2, t.hidden, t.dim);
    check_optional(block.scale2, t.dim);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  dvt::EngineWeights weights;
  const dvt::Status status = dvt::read_engine_weights(data, size, &weights);
  if (!status.ok()) {
    FUZZ_REQUIRE(status.code() == dvt::StatusCode::invalid_argument || status.code() == dvt::StatusCode::non_finite);
    require_sentence(status);
    return 0;
  }
  values = 0;
  FUZZ_REQUIRE(weights.vit || weights.denoiser);
  FUZZ_REQUIRE(weights.vit.has_value() == weights.patch_embed.has_value());
  if (weights.patch_embed) {
    const dvt::PatchEmbedWeights& embed = *weights.patch_embed;
    check_linear(embed.linear, 3 * embed.patch[0] * embed.patch[1], weights.vit->dim);
    check_norm(embed.norm, weights.vit->dim);
    for (size_t i = 0; i < 2; ++i)
      FUZZ_REQUIRE(embed.stride[i] > 0 && (embed.image_size[i] - embed.patch[i]) % embed.stride[i] == 0);
    for (size_t i = 0; i < 3; ++i) FUZZ_REQUIRE(std::isfinite(embed.mean[i] / embed.std[i]));
  }
  if (weights.vit) check_transformer(*weights.vit);
  if (weights.denoiser) check_transformer(*weights.denoiser);
  if (weights.vit && weights.denoiser) FUZZ_REQUIRE(weights.vit->dim == weights.denoiser->dim);
  FUZZ_REQUIRE(values * 2 <= size);  // what is allocated is bounded by the file
  FUZZ_REQUIRE(weights.metadata.size() < size && weights.metadata.front() == '{' && weights.metadata.back() == '}');
  return 0;
}

// What an engine file holds: the weights of a vision transformer, of a denoiser, or of one after the other, in the
// layout of the models they come from and not yet packed. `Model` (model.h) packs them.
//
// The file is safetensors with our JSON header, format "dvt_fast.engine"; docs/engine_file.md names every tensor. All
// tensors are converted to float32 on reading. Reading checks every shape against the configuration, that values are
// finite, and that nothing is missing or left over, so that whoever has these structs need not check again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"
#include "transformer/activation/activation.h"

namespace dvt {

struct NormWeights {
  enum class Kind { none, layer, rms };  // rms: x / sqrt(mean(x^2) + eps) * weight
  Kind kind = Kind::none;
  float eps = 1e-6f;
  std::vector<float> weight, bias;  // each empty where there is none
};

struct LinearWeights {
  int64_t in = 0, out = 0;
  std::vector<float> weight;  // [out, in]
  std::vector<float> bias;    // [out], or empty
};

// x + scale1 * proj(attention(norm1(x))), then x + scale2 * fc2(mlp_norm(activation(fc1(norm2(x))))).
struct BlockWeights {
  NormWeights norm1;
  LinearWeights qkv;           // out = 3 * heads * head_dim: queries, keys, values
  NormWeights q_norm, k_norm;  // over the channels of a head
  NormWeights attention_norm;  // over heads * head_dim, before proj
  LinearWeights proj;
  std::vector<float> scale1;  // [dim], LayerScale; or empty
  NormWeights norm2;
  LinearWeights fc1;     // out = hidden, or 2 * hidden where gated: first the gate, then the value
  NormWeights mlp_norm;  // over hidden
  LinearWeights fc2;
  std::vector<float> scale2;
};

// Rotary positions of the patches (not of other tokens): the angle of pair j of a head's channels at patch (y, x) is
// place_y * bands[j] for the first head_dim / 4 pairs and place_x * bands[j - head_dim / 4] for the others.
struct Rotary {
  // The place of index i of an axis with n patches is (i + offset) * reference / n + shift, where reference is, for an
  // axis, the number of patches in training; 0 stands for n itself.
  //   EVA-02:                         offset 0,   reference 16, shift 0
  //   DINOv3:                         offset 0.5, reference 2,  shift -1: patch centres from -1 to 1
  //   the denoiser of kind "rotary":  offset 0.5, reference: its grid, shift 0
  double offset = 0.5, shift = 0;
  std::array<double, 2> reference = {0, 0};  // (y, x)
  // Which channels make a pair: (j, j + head_dim / 2), or (2 j, 2 j + 1).
  enum class Pairs { halves, neighbours };
  Pairs pairs = Pairs::halves;
  std::vector<float> bands;  // [head_dim / 4]
};

// Tokens in, tokens out: the blocks of a ViT or of a denoiser.
struct TransformerWeights {
  int64_t dim = 0, heads = 0, head_dim = 0, hidden = 0;
  Activation activation = Activation::gelu;
  bool gated = false;
  std::optional<Rotary> rotary;
  // Added to the patches, [grid_y * grid_x, dim], resampled to other grids (bicubic, antialias, as timm does); or
  // empty.
  std::vector<float> pos_embed;
  std::array<int64_t, 2> pos_grid = {0, 0};
  // Tokens that stand before the patches (a ViT's class and register tokens, what is added to them included) or after
  // them (a denoiser's registers): [count, dim]. They take part in attention and are not part of the result.
  std::vector<float> extra_tokens;
  bool extra_first = true;
  NormWeights norm_pre;  // before the blocks, over all tokens (CLIP)
  std::vector<BlockWeights> blocks;
  NormWeights norm;  // after the blocks; none where features are taken before it
};

struct PatchEmbedWeights {
  std::array<int64_t, 2> patch = {16, 16}, stride = {16, 16};  // (y, x)
  LinearWeights linear;                                        // in = 3 * patch_y * patch_x, ordered (channel, y, x)
  NormWeights norm;                                            // over dim, right after; none for most
  std::array<int64_t, 2> image_size = {224, 224};              // the default (height, width) of a session
  std::array<double, 3> mean = {0, 0, 0}, std = {1, 1, 1};
};

struct EngineWeights {
  std::optional<PatchEmbedWeights> patch_embed;  // with `vit`, and only with it
  std::optional<TransformerWeights> vit;
  std::optional<TransformerWeights> denoiser;  // after the ViT, on its patches; at least one of the two is there
  std::string metadata;  // the header's "source" field as JSON text: which ViT and denoiser this was made from
};

// Reads a whole file at `data`. Errors are invalid_argument or non_finite, one sentence, without the file's name.
Status read_engine_weights(const void* data, size_t size, EngineWeights* out);
// The same from a file, which the sentence begins with.
Status read_engine_file(const std::string& path, EngineWeights* out);

}  // namespace dvt

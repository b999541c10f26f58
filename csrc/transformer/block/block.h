// A pre-norm transformer block, cut so that rows are independent between two meetings of the threads: first every row
// becomes query, key and value; then, when all keys are there, each row goes through the rest of the block.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/buffer.h"
#include "engine/weights.h"
#include "transformer/attention/attention.h"
#include "transformer/linear/linear.h"

namespace dvt {

// A norm whose weight and bias are not part of the product that follows.
struct PackedNorm {
  NormWeights::Kind kind = NormWeights::Kind::none;
  float eps = 1e-6f;
  std::vector<float> weight, bias;

  bool empty() const { return kind == NormWeights::Kind::none; }
  // In place.
  void apply(int64_t rows, int64_t dim, float* x, int64_t stride) const;
};

struct PackedBlock {
  PackedNorm norm1, q_norm, k_norm, attention_norm, norm2, mlp_norm;
  PackedLinear q, kv, proj, fc1, fc1_value, fc2;  // fc1_value: where gated
};

struct PackedTransformer {
  int64_t dim = 0, heads = 0, head_dim = 0, hidden = 0;
  Activation activation = Activation::gelu;
  std::vector<PackedBlock> blocks;
  PackedNorm norm_pre, norm;
  std::optional<Rotary> rotary;
  std::vector<float> pos_embed;  // of pos_grid
  std::array<int64_t, 2> pos_grid = {0, 0};
  std::vector<float> extra_tokens;
  bool extra_first = true;

  int64_t inner() const { return heads * head_dim; }
  int64_t extra_count() const { return static_cast<int64_t>(extra_tokens.size()) / (dim > 0 ? dim : 1); }
  // Hidden channels that are computed at a time: few, so that they stay in the cache, unless a norm needs all.
  int64_t hidden_at_once() const;
};

PackedTransformer pack_transformer(const TransformerWeights& weights, Dtype dtype, Slabs& memory);

// The angles of each patch: cos and sin, [patches, head_dim / 2] each.
struct Rotation {
  Buffer<float> cos, sin;
  bool neighbours = false;
};
Rotation make_rotation(const Rotary& rotary, int64_t head_dim, int64_t grid_height, int64_t grid_width);

// What the threads share while tokens pass through the blocks.
struct TokenBuffers {
  int64_t tokens = 0, batch = 0;
  int64_t first_patch = 0;  // index of the first token that is a patch
  int64_t patches = 0;
  const Rotation* rotation = nullptr;  // or null
  float* x = nullptr;                  // [batch][tokens][x_stride], the residual stream
  int64_t x_stride = 0;
  float* q = nullptr;  // [batch][tokens][q_stride]
  int64_t q_stride = 0;
  float* keys[2] = {nullptr, nullptr};  // [batch][heads][key_floats], of even and of odd blocks
  float* values[2] = {nullptr, nullptr};
  KeyValueShape shape;
};

// Some tokens of one image.
struct TokenRange {
  int64_t image = 0, first = 0, rows = 0;
};

// Per thread, for ranges of up to `rows` tokens; carved from one piece of memory.
struct BlockScratch {
  float* normed = nullptr;  // [rows][normed_stride]: at least dim and inner
  int64_t normed_stride = 0;
  float* wide = nullptr;  // [rows][wide_stride]: at least 3 * inner and what the mlp computes at once
  int64_t wide_stride = 0;
  float* gate = nullptr;  // the same again, where gated
  float* attention = nullptr;

  static int64_t floats(const PackedTransformer& t, int64_t rows);
  static BlockScratch carve(const PackedTransformer& t, int64_t rows, float* memory);
};

// x -> q and the keys and values of block `index`.
void block_project(const PackedTransformer& t, int64_t index, const TokenBuffers& buffers, const TokenRange& range,
                   const BlockScratch& scratch);
// x += attention, x += mlp, once all ranges were projected.
void block_mix(const PackedTransformer& t, int64_t index, const TokenBuffers& buffers, const TokenRange& range,
               const BlockScratch& scratch);

}  // namespace dvt

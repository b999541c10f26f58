#include "transformer/block/block.h"

#include <algorithm>
#include <cmath>

#include "transformer/layer_norm/layer_norm.h"

namespace dvt {
namespace {

// Hidden channels at a time: with 128 rows, 256 KB.
constexpr int64_t kHiddenAtOnce = 512;

PackedNorm keep(const NormWeights& norm) { return {norm.kind, norm.eps, norm.weight, norm.bias}; }
// Its weight and bias go into the product that follows.
PackedNorm without_affine(const NormWeights& norm) { return {norm.kind, norm.eps, {}, {}}; }

LinearWeights rows_of(const LinearWeights& weights, int64_t begin, int64_t end) {
  LinearWeights part;
  part.in = weights.in;
  part.out = end - begin;
  part.weight.assign(weights.weight.begin() + begin * weights.in, weights.weight.begin() + end * weights.in);
  if (!weights.bias.empty()) part.bias.assign(weights.bias.begin() + begin, weights.bias.begin() + end);
  return part;
}

PackedBlock pack_block(const TransformerWeights& t, const BlockWeights& w, Dtype dtype, Slabs& memory) {
  PackedBlock block;
  const int64_t inner = t.heads * t.head_dim;
  // Queries carry the scale of the scores: from their product, or from their norm where there is one.
  const float scale = static_cast<float>(kLog2e / std::sqrt(static_cast<double>(t.head_dim)));
  std::vector<float> q_scale;
  block.q_norm = keep(w.q_norm);
  block.k_norm = keep(w.k_norm);
  if (block.q_norm.empty()) {
    q_scale.assign(static_cast<size_t>(inner), scale);
  } else {
    if (block.q_norm.weight.empty()) block.q_norm.weight.assign(static_cast<size_t>(t.head_dim), 1.0f);
    for (float& v : block.q_norm.weight) v *= scale;
    for (float& v : block.q_norm.bias) v *= scale;
  }
  block.norm1 = without_affine(w.norm1);
  block.q = pack_linear(rows_of(w.qkv, 0, inner), dtype, memory, &w.norm1, q_scale);
  block.kv = pack_linear(rows_of(w.qkv, inner, 3 * inner), dtype, memory, &w.norm1);
  block.attention_norm = without_affine(w.attention_norm);
  block.proj = pack_linear(w.proj, dtype, memory, &w.attention_norm, w.scale1);
  block.norm2 = without_affine(w.norm2);
  if (t.gated) {
    block.fc1 = pack_linear(rows_of(w.fc1, 0, t.hidden), dtype, memory, &w.norm2);
    block.fc1_value = pack_linear(rows_of(w.fc1, t.hidden, 2 * t.hidden), dtype, memory, &w.norm2);
  } else {
    block.fc1 = pack_linear(w.fc1, dtype, memory, &w.norm2);
  }
  block.mlp_norm = without_affine(w.mlp_norm);
  block.fc2 = pack_linear(w.fc2, dtype, memory, &w.mlp_norm, w.scale2);
  return block;
}

double place_of(const Rotary& rotary, size_t axis, int64_t i, int64_t n) {
  const double reference = rotary.reference[axis] > 0 ? rotary.reference[axis] : static_cast<double>(n);
  return (static_cast<double>(i) + rotary.offset) * reference / static_cast<double>(n) + rotary.shift;
}

// Turns each pair of channels of one row by the angles of its patch.
void rotate(const Rotation& rotation, int64_t patch, int64_t head_dim, float* row) {
  const int64_t pairs = head_dim / 2;
  const float *cos = rotation.cos.data() + patch * pairs, *sin = rotation.sin.data() + patch * pairs;
  const int64_t step = rotation.neighbours ? 2 : 1, distance = rotation.neighbours ? 1 : pairs;
  for (int64_t j = 0; j < pairs; ++j) {
    const float a = row[j * step], b = row[j * step + distance];
    row[j * step] = a * cos[j] - b * sin[j];
    row[j * step + distance] = b * cos[j] + a * sin[j];
  }
}

void normalise(const PackedNorm& norm, int64_t rows, int64_t dim, const float* x, int64_t x_stride, float* y,
               int64_t y_stride) {
  NormCall call;
  call.kind = norm.kind;
  call.eps = norm.eps;
  call.weight = norm.weight.empty() ? nullptr : norm.weight.data();
  call.bias = norm.bias.empty() ? nullptr : norm.bias.data();
  call.rows = rows;
  call.dim = dim;
  call.x = x;
  call.x_stride = x_stride;
  call.y = y;
  call.y_stride = y_stride;
  layer_norm(call);
}

}  // namespace

void PackedNorm::apply(int64_t rows, int64_t dim, float* x, int64_t stride) const {
  if (!empty()) normalise(*this, rows, dim, x, stride, x, stride);
}

int64_t PackedTransformer::hidden_at_once() const {
  for (const PackedBlock& block : blocks)
    if (!block.mlp_norm.empty()) return hidden;
  return std::min(hidden, kHiddenAtOnce);
}

PackedTransformer pack_transformer(const TransformerWeights& weights, Dtype dtype, Slabs& memory) {
  PackedTransformer t;
  t.dim = weights.dim;
  t.heads = weights.heads;
  t.head_dim = weights.head_dim;
  t.hidden = weights.hidden;
  t.activation = weights.activation;
  t.norm_pre = keep(weights.norm_pre);
  t.norm = keep(weights.norm);
  t.rotary = weights.rotary;
  t.pos_embed = weights.pos_embed;
  t.pos_grid = weights.pos_grid;
  t.extra_tokens = weights.extra_tokens;
  t.extra_first = weights.extra_first;
  t.blocks.reserve(weights.blocks.size());
  for (const BlockWeights& block : weights.blocks) t.blocks.push_back(pack_block(weights, block, dtype, memory));
  return t;
}

Rotation make_rotation(const Rotary& rotary, int64_t head_dim, int64_t grid_height, int64_t grid_width) {
  Rotation rotation;
  rotation.neighbours = rotary.pairs == Rotary::Pairs::neighbours;
  const int64_t pairs = head_dim / 2, bands = head_dim / 4, patches = grid_height * grid_width;
  float *cos = rotation.cos.at_least(patches * pairs), *sin = rotation.sin.at_least(patches * pairs);
  for (int64_t y = 0; y < grid_height; ++y)
    for (int64_t x = 0; x < grid_width; ++x)
      for (int64_t j = 0; j < pairs; ++j) {
        const double place = j < bands ? place_of(rotary, 0, y, grid_height) : place_of(rotary, 1, x, grid_width);
        const double angle = place * rotary.bands[static_cast<size_t>(j % bands)];
        const int64_t at = (y * grid_width + x) * pairs + j;
        cos[at] = static_cast<float>(std::cos(angle));
        sin[at] = static_cast<float>(std::sin(angle));
      }
  return rotation;
}

int64_t BlockScratch::floats(const PackedTransformer& t, int64_t rows) {
  const int64_t normed = row_stride(std::max(t.dim, t.inner()));
  const int64_t wide = row_stride(std::max(2 * t.inner(), t.hidden_at_once()));
  return rows * (normed + 2 * wide) + attention_scratch(t.head_dim);
}

BlockScratch BlockScratch::carve(const PackedTransformer& t, int64_t rows, float* memory) {
  BlockScratch scratch;
  scratch.normed_stride = row_stride(std::max(t.dim, t.inner()));
  scratch.wide_stride = row_stride(std::max(2 * t.inner(), t.hidden_at_once()));
  scratch.normed = memory;
  scratch.wide = scratch.normed + rows * scratch.normed_stride;
  scratch.gate = scratch.wide + rows * scratch.wide_stride;
  scratch.attention = scratch.gate + rows * scratch.wide_stride;
  return scratch;
}

void block_project(const PackedTransformer& t, int64_t index, const TokenBuffers& buffers, const TokenRange& range,
                   const BlockScratch& scratch) {
  const PackedBlock& block = t.blocks[static_cast<size_t>(index)];
  const int64_t inner = t.inner(), row0 = range.image * buffers.tokens + range.first;
  const float* x = buffers.x + row0 * buffers.x_stride;
  normalise(block.norm1, range.rows, t.dim, x, buffers.x_stride, scratch.normed, scratch.normed_stride);
  float* queries = buffers.q + row0 * buffers.q_stride;
  linear(whole(block.q, range.rows, scratch.normed, scratch.normed_stride, queries, buffers.q_stride));
  linear(whole(block.kv, range.rows, scratch.normed, scratch.normed_stride, scratch.wide, scratch.wide_stride));
  for (int64_t head = 0; head < t.heads; ++head) {
    float* q = queries + head * t.head_dim;
    float* k = scratch.wide + head * t.head_dim;
    const float* v = k + inner;
    block.q_norm.apply(range.rows, t.head_dim, q, buffers.q_stride);
    block.k_norm.apply(range.rows, t.head_dim, k, scratch.wide_stride);
    if (buffers.rotation)
      for (int64_t r = 0; r < range.rows; ++r) {
        const int64_t patch = range.first + r - buffers.first_patch;
        if (patch < 0 || patch >= buffers.patches) continue;
        rotate(*buffers.rotation, patch, t.head_dim, q + r * buffers.q_stride);
        rotate(*buffers.rotation, patch, t.head_dim, k + r * scratch.wide_stride);
      }
    const int64_t at = range.image * t.heads + head;
    store_keys(buffers.shape, range.first, range.rows, k, scratch.wide_stride,
               buffers.keys[index % 2] + at * buffers.shape.key_floats());
    store_values(buffers.shape, range.first, range.rows, v, scratch.wide_stride,
                 buffers.values[index % 2] + at * buffers.shape.value_floats());
  }
}

void block_mix(const PackedTransformer& t, int64_t index, const TokenBuffers& buffers, const TokenRange& range,
               const BlockScratch& scratch) {
  const PackedBlock& block = t.blocks[static_cast<size_t>(index)];
  const int64_t row0 = range.image * buffers.tokens + range.first;
  float* x = buffers.x + row0 * buffers.x_stride;

  AttentionCall attend;
  attend.shape = buffers.shape;
  attend.rows = range.rows;
  attend.q_stride = buffers.q_stride;
  attend.out_stride = scratch.normed_stride;
  attend.scratch = scratch.attention;
  for (int64_t head = 0; head < t.heads; ++head) {
    const int64_t at = range.image * t.heads + head;
    attend.q = buffers.q + row0 * buffers.q_stride + head * t.head_dim;
    attend.keys = buffers.keys[index % 2] + at * buffers.shape.key_floats();
    attend.values = buffers.values[index % 2] + at * buffers.shape.value_floats();
    attend.out = scratch.normed + head * t.head_dim;
    attention(attend);
  }
  block.attention_norm.apply(range.rows, t.inner(), scratch.normed, scratch.normed_stride);
  LinearCall proj = whole(block.proj, range.rows, scratch.normed, scratch.normed_stride, x, buffers.x_stride);
  proj.accumulate = true;
  linear(proj);

  normalise(block.norm2, range.rows, t.dim, x, buffers.x_stride, scratch.normed, scratch.normed_stride);
  const int64_t nr = block.fc1.nr, at_once = (t.hidden_at_once() + nr - 1) / nr * nr;
  for (int64_t h = 0; h < t.hidden; h += at_once) {
    LinearCall up =
        whole(block.fc1, range.rows, scratch.normed, scratch.normed_stride, scratch.wide, scratch.wide_stride);
    up.panel_begin = h / nr;
    up.panel_end = std::min(block.fc1.panel_count(), (h + at_once) / nr);
    up.activate = true;
    up.activation = t.activation;
    linear(up);
    const int64_t count = std::min(at_once, t.hidden - h);
    if (!block.fc1_value.empty()) {
      up.weights = &block.fc1_value;
      up.activate = false;
      up.y = scratch.gate;
      linear(up);
      for (int64_t r = 0; r < range.rows; ++r)
        for (int64_t c = 0; c < count; ++c)
          scratch.wide[r * scratch.wide_stride + c] *= scratch.gate[r * scratch.wide_stride + c];
    }
    block.mlp_norm.apply(range.rows, t.hidden, scratch.wide, scratch.wide_stride);
    LinearCall down = whole(block.fc2, range.rows, scratch.wide, scratch.wide_stride, x, buffers.x_stride);
    down.k_begin = h;
    down.k_end = h + count;
    down.add_bias = h == 0;
    down.accumulate = true;
    linear(down);
  }
}

}  // namespace dvt

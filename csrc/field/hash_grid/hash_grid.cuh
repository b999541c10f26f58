// The hash grid's corners and reads on the device, for the kernels that have a point in registers. The index
// mathematics is hash_grid.h's; weights and sums are the CPU's, with sums fused.
#pragma once

#include "cuda/numeric.cuh"
#include "field/hash_grid/hash_grid.h"

namespace dvt::cuda {

// Where a point lies on a level.
template <int D>
struct Cell {
  uint32_t lower[D];
  float fraction[D];

  DVT_DEVICE Cell(const HashGridLevel& level, const float* point) {
#pragma unroll
    for (int d = 0; d < D; ++d) hash_grid_position(level.scale, point[d], &lower[d], &fraction[d]);
  }
  // The entry, of all levels, at corner c, and its weight.
  DVT_DEVICE uint32_t entry(const HashGridLevel& level, int c) const {
    uint32_t position[D];
#pragma unroll
    for (int d = 0; d < D; ++d) position[d] = lower[d] + (static_cast<uint32_t>(c) >> d & 1u);
    return level.offset + hash_grid_entry(level, D, position);
  }
  DVT_DEVICE float weight(int c) const {
    float w = 1.0f;
#pragma unroll
    for (int d = 0; d < D; ++d) w = __fmul_rn(w, c >> d & 1 ? fraction[d] : 1.0f - fraction[d]);
    return w;
  }
};

// V neighbouring floats, aligned to their size.
template <int V>
struct Floats {
  float x[V];
};
template <int V>
DVT_DEVICE Floats<V> load_floats(const float* from) {
  Floats<V> out;
  if constexpr (V == 4) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    out.x[0] = v.x, out.x[1] = v.y, out.x[2] = v.z, out.x[3] = v.w;
  } else if constexpr (V == 2) {
    const float2 v = *reinterpret_cast<const float2*>(from);
    out.x[0] = v.x, out.x[1] = v.y;
  } else {
    out.x[0] = *from;
  }
  return out;
}
template <int V>
DVT_DEVICE void store_floats(float* to, const Floats<V>& v) {
  if constexpr (V == 4)
    *reinterpret_cast<float4*>(to) = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
  else if constexpr (V == 2)
    *reinterpret_cast<float2*>(to) = make_float2(v.x[0], v.x[1]);
  else
    *to = v.x[0];
}

// Features [chunk * V, chunk * V + V) of the point's encoding on a level of F features; params [entries, F].
template <int D, int V>
DVT_DEVICE Floats<V> encode_cell(const HashGridLevel& level, const Cell<D>& cell, const float* params, int n_features,
                                 int chunk) {
  Floats<V> sum = {};
#pragma unroll
  for (int c = 0; c < 1 << D; ++c) {
    const Floats<V> p = load_floats<V>(params + static_cast<int64_t>(cell.entry(level, c)) * n_features + chunk * V);
    const float w = cell.weight(c);
#pragma unroll
    for (int i = 0; i < V; ++i) sum.x[i] = __fmaf_rn(w, p.x[i], sum.x[i]);
  }
  return sum;
}

// Gradients as integers: sums that do not depend on their order. scale: units of one, a power of two; addends are cut
// to +-limit units, so that a sum of as many as there are cannot wrap.
struct FixedPoint {
  float scale, limit;
  DVT_DEVICE long long of(float x) const { return llrintf(fminf(fmaxf(x * scale, -limit), limit)); }
  DVT_DEVICE float to_float(long long units) const {
    return static_cast<float>(static_cast<double>(units) / static_cast<double>(scale));
  }
};

// d_params [entry's F] += weight * d for the chunk of V: as a vector where there is one, or in fixed point.
template <int V>
DVT_DEVICE void add_gradient(float* to, const Floats<V>& d, float weight) {
  if constexpr (V == 4) {
    ptx::add_global(to, make_float4(weight * d.x[0], weight * d.x[1], weight * d.x[2], weight * d.x[3]));
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) ptx::add_global(to + i, weight * d.x[i]);
  }
}
template <int V>
DVT_DEVICE void add_gradient(unsigned long long* to, const Floats<V>& d, float weight, const FixedPoint& fixed) {
#pragma unroll
  for (int i = 0; i < V; ++i) atomicAdd(to + i, static_cast<unsigned long long>(fixed.of(weight * d.x[i])));
}

}  // namespace dvt::cuda

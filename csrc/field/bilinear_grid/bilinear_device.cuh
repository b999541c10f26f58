// What the kernels of the bilinear grid share: where a point lies, four channels at a time, sums over a block.
//
// A point's `cell` is the square of four nodes around it, numbered row by row: (ny - 1) x (nx - 1) of them. The
// arithmetic is that of bilinear_grid.h, without contraction, so that the CPU and the device agree on every tap.
#pragma once

#include "core/tensor.h"
#include "cuda/numeric.cuh"
#include "cuda/ptx.cuh"
#include "field/bilinear_grid/bilinear_grid.h"

namespace dvt::cuda {

struct Place {
  uint32_t cell;
  float2 at;  // the position in the cell, in [0, 1]
};
DVT_DEVICE Place place_of(GridShape grid, float x, float y) {
  const float px = __fmul_rn(x > 0 ? (x < 1 ? x : 1.0f) : 0.0f, static_cast<float>(grid.nx - 1));
  const float py = __fmul_rn(y > 0 ? (y < 1 ? y : 1.0f) : 0.0f, static_cast<float>(grid.ny - 1));
  const int jx = min(static_cast<int>(px), static_cast<int>(grid.nx) - 2);
  const int jy = min(static_cast<int>(py), static_cast<int>(grid.ny) - 2);
  return {static_cast<uint32_t>(jy) * static_cast<uint32_t>(grid.nx - 1) + static_cast<uint32_t>(jx),
          make_float2(__fadd_rn(px, -static_cast<float>(jx)), __fadd_rn(py, -static_cast<float>(jy)))};
}
DVT_DEVICE int64_t nodes_of(GridShape grid) { return grid.ny * grid.nx; }
DVT_DEVICE int64_t cells_of(GridShape grid) { return (grid.ny - 1) * (grid.nx - 1); }
// The upper left node of a cell; the others are + 1, + nx and + nx + 1.
DVT_DEVICE uint32_t node_of_cell(GridShape grid, uint32_t cell) {
  return cell + cell / static_cast<uint32_t>(grid.nx - 1);
}
DVT_DEVICE void tap_weights_at(float2 at, float (&t)[4]) {
  t[0] = (1 - at.x) * (1 - at.y);
  t[1] = at.x * (1 - at.y);
  t[2] = (1 - at.x) * at.y;
  t[3] = at.x * at.y;
}

// ---------------------------------------------------------------------------------------- four channels of a row --

DVT_DEVICE float4 zero4() { return make_float4(0, 0, 0, 0); }
DVT_DEVICE float4 add4(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
DVT_DEVICE float4 subtract4(float4 a, float4 b) { return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w); }
DVT_DEVICE float4 multiply4(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
DVT_DEVICE float4 scale4(float4 a, float s) { return make_float4(a.x * s, a.y * s, a.z * s, a.w * s); }
DVT_DEVICE void add_scaled4(float4& sum, float4 a, float s) {
  sum.x += a.x * s, sum.y += a.y * s, sum.z += a.z * s, sum.w += a.w * s;
}
DVT_DEVICE float square4(float4 a) { return a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w; }

// Four neighbours of a row whose address is a multiple of four of them.
DVT_DEVICE float4 load_whole4(const float* p) { return *reinterpret_cast<const float4*>(p); }
template <class T>
DVT_DEVICE float4 load_whole4(const T* p) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  const float2 low = unpack2<T>(v.x), high = unpack2<T>(v.y);
  return make_float4(low.x, low.y, high.x, high.y);
}
// Channels c to c + 3 of a row of `channels`; zeros beyond its end. whole: every row is aligned and a multiple of four.
template <class T>
DVT_DEVICE float4 load4(const T* row, int64_t c, int64_t channels, bool whole) {
  if (c >= channels) return zero4();
  if (whole) return load_whole4(row + c);
  float4 v = zero4();
  v.x = to_float(row[c]);
  if (c + 1 < channels) v.y = to_float(row[c + 1]);
  if (c + 2 < channels) v.z = to_float(row[c + 2]);
  if (c + 3 < channels) v.w = to_float(row[c + 3]);
  return v;
}
DVT_DEVICE void store4(float* row, int64_t c, int64_t channels, bool whole, float4 v) {
  if (c >= channels) return;
  if (whole) {
    *reinterpret_cast<float4*>(row + c) = v;
    return;
  }
  row[c] = v.x;
  if (c + 1 < channels) row[c + 1] = v.y;
  if (c + 2 < channels) row[c + 2] = v.z;
  if (c + 3 < channels) row[c + 3] = v.w;
}

// --------------------------------------------------------------------------------------------- sums over a block --

template <class V>
DVT_DEVICE V warp_sum(V v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

// Every thread gets the sums of kCount values over the block, in an order that is always the same. scratch: kCount * 33
// values of shared memory, free again when the last thread returns. The block is whole warps.
template <int kCount, class V>
DVT_DEVICE void block_sum(V (&v)[kCount], V* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int k = 0; k < kCount; ++k) {
    v[k] = warp_sum(v[k]);
    if (lane == 0) scratch[warp * kCount + k] = v[k];
  }
  __syncthreads();
  if (warp == 0)
    for (int k = 0; k < kCount; ++k) {
      const V total = warp_sum(lane < warps ? scratch[lane * kCount + k] : V(0));
      if (lane == 0) scratch[32 * kCount + k] = total;
    }
  __syncthreads();
  for (int k = 0; k < kCount; ++k) v[k] = scratch[32 * kCount + k];
  __syncthreads();
}

}  // namespace dvt::cuda

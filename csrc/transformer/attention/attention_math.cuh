// Operands of attention's two products, a storage type each: how a warp's fragments come from global and shared memory,
// how the weights of keys are handed from the first product to the second, and the products themselves.
#pragma once

#include <cstdint>

#include "cuda/numeric.cuh"
#include "cuda/ptx.cuh"

namespace dvt::cuda {

// Fragments and products of a storage type: k is what is summed over, kDepth of it at a time.
template <class T, bool kThree>
struct AttentionMath;

template <class T>
struct NarrowMath {
  static constexpr int kDepth = 16;
  struct A {
    uint32_t v[4];
  };
  struct B {
    uint32_t v[2];
  };
  template <class Queries>
  static DVT_DEVICE void forget(Queries&) {}
  // Of row-major queries; rows from `rows` on are zero.
  static DVT_DEVICE A load_queries(const T* q, int64_t stride, int rows, int k) {
    const int lane = ptx::lane_id(), group = lane / 4, quad = lane % 4;
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8, column = k * kDepth + quad * 2 + i / 2 * 8;
      a.v[i] = row < rows ? *reinterpret_cast<const uint32_t*>(q + row * stride + column) : 0u;
    }
    return a;
  }
  // Keys [16, kStride]: fragments of the keys 0..7 and 8..15.
  template <int kStride>
  static DVT_DEVICE void load_keys(const T* keys, int k, B (&b)[2]) {
    const int lane = ptx::lane_id();
    uint32_t v[4];
    ptx::ldmatrix_x4(v, keys + (lane / 16 * 8 + lane % 8) * kStride + k * kDepth + lane / 8 % 2 * 8);
    b[0] = {{v[0], v[1]}};
    b[1] = {{v[2], v[3]}};
  }
  // Values [16, kStride]: fragments of two neighbours of 8 channels.
  template <int kStride>
  static DVT_DEVICE void load_values(const T* values, int channel, B (&b)[2]) {
    const int lane = ptx::lane_id();
    uint32_t v[4];
    ptx::ldmatrix_x4_trans(v, values + lane % 16 * kStride + channel + lane / 16 * 8);
    b[0] = {{v[0], v[1]}};
    b[1] = {{v[2], v[3]}};
  }
  // Weights of step k of the second product, from scores as the first one left them: [8 keys each] accumulators.
  static DVT_DEVICE A weights(const float (*p)[4], int k) {
    const float *low = p[2 * k], *high = p[2 * k + 1];
    return {
        {pack2<T>(low[0], low[1]), pack2<T>(low[2], low[3]), pack2<T>(high[0], high[1]), pack2<T>(high[2], high[3])}};
  }
  static DVT_DEVICE void store(T* to, float low, float high) { *reinterpret_cast<uint32_t*>(to) = pack2<T>(low, high); }
};

template <>
struct AttentionMath<f16, false> : NarrowMath<f16> {
  static DVT_DEVICE void multiply(float (&c)[4], const A& a, const B& b) { ptx::mma_m16n8k16_f16(c, a.v, b.v); }
};
template <>
struct AttentionMath<bf16, false> : NarrowMath<bf16> {
  static DVT_DEVICE void multiply(float (&c)[4], const A& a, const B& b) { ptx::mma_m16n8k16_bf16(c, a.v, b.v); }
};

// The order of what is summed over is free as long as both operands agree. For the second product key 2 q stands where
// the fragment has q, and 2 q + 1 where it has q + 4: so accumulators are operands without a shuffle.
template <bool kThree>
struct AttentionMath<tf32, kThree> {
  using T = tf32;
  static constexpr int kDepth = 8;
  struct A {
    float v[4];
  };
  struct B {
    float v[2];
  };
  // Parts of the queries are made in each tile of keys anew: those of all steps at once are more than registers hold.
  template <int kMTiles, int kSteps>
  static DVT_DEVICE void forget(A (&queries)[kMTiles][kSteps]) {
    if (!kThree) return;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m)
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) ptx::forget(queries[m][step].v[i]);
  }
  static DVT_DEVICE A load_queries(const T* q, int64_t stride, int rows, int k) {
    const int lane = ptx::lane_id(), group = lane / 4, quad = lane % 4;
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8;
      a.v[i] = row < rows ? q[row * stride + k * kDepth + quad + i / 2 * 4].value : 0.0f;
    }
    return a;
  }
  // A matrix of 8 rows of 16 bytes is 8 x 4 floats here, and lane 4 g + q gets column q of row g.
  template <int kStride>
  static DVT_DEVICE void load_keys(const T* keys, int k, B (&b)[2]) {
    const int lane = ptx::lane_id();
    uint32_t v[4];
    ptx::ldmatrix_x4(v, keys + (lane / 16 * 8 + lane % 8) * kStride + k * kDepth + lane / 8 % 2 * 4);
    b[0] = {{__uint_as_float(v[0]), __uint_as_float(v[1])}};
    b[1] = {{__uint_as_float(v[2]), __uint_as_float(v[3])}};
  }
  template <int kStride>
  static DVT_DEVICE void load_values(const T* values, int channel, B (&b)[2]) {
    const int lane = ptx::lane_id(), group = lane / 4, quad = lane % 4;
    const T* at = values + 2 * quad * kStride + channel + group;
    b[0] = {{at[0].value, at[kStride].value}};
    b[1] = {{at[8].value, at[kStride + 8].value}};
  }
  static DVT_DEVICE A weights(const float (*p)[4], int k) { return {{p[k][0], p[k][2], p[k][1], p[k][3]}}; }
  static DVT_DEVICE void multiply(float (&c)[4], const A& a, const B& b) {
    uint32_t a_high[4], b_high[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) a_high[i] = ptx::round_tf32(a.v[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) b_high[i] = ptx::round_tf32(b.v[i]);
    if (kThree) {  // the small products first
      uint32_t a_low[4], b_low[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) a_low[i] = ptx::round_tf32(a.v[i] - __uint_as_float(a_high[i]));
#pragma unroll
      for (int i = 0; i < 2; ++i) b_low[i] = ptx::round_tf32(b.v[i] - __uint_as_float(b_high[i]));
      ptx::mma_m16n8k8_tf32(c, a_low, b_high);
      ptx::mma_m16n8k8_tf32(c, a_high, b_low);
    }
    ptx::mma_m16n8k8_tf32(c, a_high, b_high);
  }
  static DVT_DEVICE void store(T* to, float low, float high) {
    if (!kThree) low = from_float<tf32>(low).value, high = from_float<tf32>(high).value;
    *reinterpret_cast<float2*>(to) = make_float2(low, high);
  }
};

}  // namespace dvt::cuda

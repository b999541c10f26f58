// What linear_sm90.cu does with the sums of gemm_sm90.cuh: bias, activation, gate, residual, conversion.
#pragma once

#include "linalg/gemm/gemm_sm90.cuh"
#include "transformer/activation/activation.cuh"
#include "transformer/linear/linear_cuda.h"

namespace dvt::cuda {

// Which activation is compiled in; `any` also has the gate, and is the slowest.
enum class LinearKindSm90 { none, gelu, any };

template <LinearKindSm90 kKind, Accuracy kAccuracy>
struct LinearEpilogueSm90 {
  static constexpr bool kHasPairs = kKind != LinearKindSm90::any;
  static constexpr bool kHasWide = kKind != LinearKindSm90::any;

  const float* bias = nullptr;
  Logistic logistic;
  bool is_gelu = false, gated = false;
  const float* residual = nullptr;
  int64_t residual_stride = 0;
  void* y = nullptr;
  int64_t y_stride = 0;
  Dtype y_type = Dtype::float32;
  bool round_y = false;  // float32 to tf32, where x is float32
  uint32_t* not_finite = nullptr;
  int cols = 0;       // of sums: twice those of y where gated
  bool wide = false;  // rows of y, bias and residual are aligned for four columns at once, and cols is a multiple of 4

  DVT_DEVICE float2 pair(float2 sums, int col) const {
    if (bias) {
      const float2 b = __ldg(reinterpret_cast<const float2*>(bias + col));
      sums.x += b.x, sums.y += b.y;
    }
    return make_float2(activate_one(sums.x), activate_one(sums.y));
  }

  DVT_DEVICE bool is_wide() const { return wide; }
  DVT_DEVICE float4 load_wide(int row, int col) const {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (kKind == LinearKindSm90::none && residual)
      v = *reinterpret_cast<const float4*>(residual + row * residual_stride + col);
    return v;
  }
  DVT_DEVICE void store_wide(int row, int col, float4 sums, float4 held) const {
    if (bias) {
      const float4 b = __ldg(reinterpret_cast<const float4*>(bias + col));
      sums.x += b.x, sums.y += b.y, sums.z += b.z, sums.w += b.w;
    }
    float4 v = make_float4(activate_one(sums.x) + held.x, activate_one(sums.y) + held.y, activate_one(sums.z) + held.z,
                           activate_one(sums.w) + held.w);
    const int64_t at = row * y_stride + col;
    if (y_type == Dtype::float32) {
      if (rounds()) v = make_float4(rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w));
      *reinterpret_cast<float4*>(static_cast<float*>(y) + at) = v;
      // v - v is zero, or NaN where v is not finite.
      found(!((v.x - v.x) + (v.y - v.y) + ((v.z - v.z) + (v.w - v.w)) == 0.0f));
    } else {
      const uint2 packed = y_type == Dtype::bfloat16 ? make_uint2(pack2<bf16>(v.x, v.y), pack2<bf16>(v.z, v.w))
                                                     : make_uint2(pack2<f16>(v.x, v.y), pack2<f16>(v.z, v.w));
      *reinterpret_cast<uint2*>(static_cast<uint16_t*>(y) + at) = packed;
      found(is_bad(packed.x) || is_bad(packed.x >> 16) || is_bad(packed.y) || is_bad(packed.y >> 16));
    }
  }

  DVT_DEVICE void store(int row, int col, float4 sums) const {
    float v[4] = {sums.x, sums.y, sums.z, sums.w};
    int count = min(cols - col, 4);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (bias && i < count) v[i] += __ldg(bias + col + i);
    if (kKind == LinearKindSm90::any && gated) {
      v[0] = activate_one(v[0]) * v[1];
      v[1] = activate_one(v[2]) * v[3];
      count /= 2;
      col /= 2;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = activate_one(v[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) put(row, col + i, v[i]);
  }

 private:
  DVT_DEVICE bool rounds() const { return kAccuracy == Accuracy::full && round_y; }
  DVT_DEVICE static float rounded(float v) { return from_float<tf32>(v).value; }
  // Of the 16 bits below: an exponent of ones only.
  DVT_DEVICE bool is_bad(uint32_t bits) const {
    const uint32_t exponent = y_type == Dtype::bfloat16 ? 0x7f80u : 0x7c00u;
    return (bits & exponent) == exponent;
  }
  DVT_DEVICE void found(bool bad) const {
    if (kKind == LinearKindSm90::none && not_finite && bad) atomicOr(not_finite, 1u);
  }
  DVT_DEVICE float activate_one(float x) const {
    if constexpr (kKind == LinearKindSm90::gelu) return gelu<kAccuracy>(x);
    if constexpr (kKind == LinearKindSm90::any) return activate<kAccuracy>(is_gelu, logistic, x);
    return x;
  }
  DVT_DEVICE void put(int row, int col, float v) const {
    if (residual) v += residual[row * residual_stride + col];
    const int64_t at = row * y_stride + col;
    if (y_type == Dtype::float32) {
      if (rounds()) v = rounded(v);
      static_cast<float*>(y)[at] = v;
      found(!(v - v == 0.0f));
    } else {
      const uint32_t bits = y_type == Dtype::bfloat16 ? pack2<bf16>(v, 0.0f) : pack2<f16>(v, 0.0f);
      static_cast<uint16_t*>(y)[at] = static_cast<uint16_t>(bits);
      found(is_bad(bits));
    }
  }
};

}  // namespace dvt::cuda

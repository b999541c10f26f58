// What linear_sm90.cu does with the sums of gemm_sm90.cuh: bias, activation, gate, residual, conversion.
#pragma once

#include "linalg/gemm/gemm_sm90.cuh"
#include "transformer/activation/activation.cuh"
#include "transformer/linear/linear_cuda.h"

namespace dvt::cuda {

// Which activation is compiled in; `any` also has the gate, and is the slowest.
enum class LinearKindSm90 { none, gelu, any };

template <LinearKindSm90 kKind>
struct LinearEpilogueSm90 {
  static constexpr bool kHasPairs = kKind != LinearKindSm90::any;
  static constexpr bool kHasWide = kKind == LinearKindSm90::none;

  const float* bias = nullptr;
  Logistic logistic;
  bool is_gelu = false, gated = false;
  const float* residual = nullptr;
  int64_t residual_stride = 0;
  void* y = nullptr;
  int64_t y_stride = 0;
  Dtype y_type = Dtype::float32;
  uint32_t* not_finite = nullptr;
  int cols = 0;       // of sums: twice those of y where gated
  bool wide = false;  // y is float32, and rows of all are aligned for four columns at once

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
    if (residual) v = *reinterpret_cast<const float4*>(residual + row * residual_stride + col);
    return v;
  }
  DVT_DEVICE void store_wide(int row, int col, float4 sums, float4 held) const {
    if (bias) {
      const float4 b = __ldg(reinterpret_cast<const float4*>(bias + col));
      sums.x += b.x, sums.y += b.y, sums.z += b.z, sums.w += b.w;
    }
    const float4 v = make_float4(sums.x + held.x, sums.y + held.y, sums.z + held.z, sums.w + held.w);
    *reinterpret_cast<float4*>(static_cast<float*>(y) + row * y_stride + col) = v;
    // v - v is zero, or NaN where v is not finite.
    if (not_finite && !((v.x - v.x) + (v.y - v.y) + ((v.z - v.z) + (v.w - v.w)) == 0.0f)) atomicOr(not_finite, 1u);
  }

  DVT_DEVICE void store(int row, int col, float4 sums) const {
    const float all[4] = {sums.x, sums.y, sums.z, sums.w};
    const bool is_gated = kKind == LinearKindSm90::any && gated;
#pragma unroll 1
    for (int i = 0; i < 4 && col + i < cols; ++i) {
      const int c = col + i;
      float v = pick(all, i) + (bias ? __ldg(bias + c) : 0.0f);
      if (is_gated) {
        const float value = pick(all, ++i) + (bias ? __ldg(bias + c + 1) : 0.0f);
        put(row, c / 2, activate_one(v) * value);
      } else {
        put(row, c, activate_one(v));
      }
    }
  }

 private:
  // Of registers, that cannot be indexed by what is not known when the code is made.
  DVT_DEVICE static float pick(const float (&v)[4], int i) {
    const float low = i & 1 ? v[1] : v[0], high = i & 1 ? v[3] : v[2];
    return i & 2 ? high : low;
  }
  DVT_DEVICE float activate_one(float x) const {
    if constexpr (kKind == LinearKindSm90::gelu) return gelu<Accuracy::narrow>(x);
    if constexpr (kKind == LinearKindSm90::any) return activate<Accuracy::narrow>(is_gelu, logistic, x);
    return x;
  }
  DVT_DEVICE void put(int row, int col, float v) const {
    if (residual) v += residual[row * residual_stride + col];
    const int64_t at = row * y_stride + col;
    bool finite;
    if (y_type == Dtype::float32) {
      static_cast<float*>(y)[at] = v;
      finite = v - v == 0.0f;
    } else {
      const bool is_bf16 = y_type == Dtype::bfloat16;
      const uint32_t bits = is_bf16 ? pack2<bf16>(v, 0.0f) : pack2<f16>(v, 0.0f);
      static_cast<uint16_t*>(y)[at] = static_cast<uint16_t>(bits);
      const uint32_t exponent = is_bf16 ? 0x7f80u : 0x7c00u;
      finite = (bits & exponent) != exponent;
    }
    if (not_finite && !finite) atomicOr(not_finite, 1u);
  }
};

}  // namespace dvt::cuda

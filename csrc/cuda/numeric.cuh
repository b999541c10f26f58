// Numbers that the tensor cores take: float16, bfloat16, and float32 cut to tf32. Kernels are templates on the storage
// type; every sum is float32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ptx.cuh"

#define DVT_DEVICE __device__ __forceinline__

namespace dvt::cuda {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};
// A float32 of which the tensor cores read the upper 19 bits; `round_tf32` rounds it to those first.
struct tf32 {
  float value;
};

template <class T>
constexpr int kBytes = sizeof(T);

DVT_DEVICE float to_float(float x) { return x; }
DVT_DEVICE float to_float(f16 x) { return ptx::f16_to_float(x.bits); }
DVT_DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
DVT_DEVICE float to_float(tf32 x) { return x.value; }
DVT_DEVICE float to_float(uint8_t x) { return static_cast<float>(x); }

// To the nearest, ties to even.
template <class T>
DVT_DEVICE T from_float(float x);
template <>
DVT_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
DVT_DEVICE f16 from_float<f16>(float x) {
  return {static_cast<uint16_t>(ptx::pack_f16(x, 0.0f))};
}
template <>
DVT_DEVICE bf16 from_float<bf16>(float x) {
  return {static_cast<uint16_t>(ptx::pack_bf16(x, 0.0f))};
}
template <>
DVT_DEVICE tf32 from_float<tf32>(float x) {
  return {__uint_as_float(ptx::round_tf32(x))};
}

// Two neighbours in one register, the first in the low half.
template <class T>
DVT_DEVICE uint32_t pack2(float low, float high);
template <>
DVT_DEVICE uint32_t pack2<f16>(float low, float high) {
  return ptx::pack_f16(low, high);
}
template <>
DVT_DEVICE uint32_t pack2<bf16>(float low, float high) {
  return ptx::pack_bf16(low, high);
}

template <class T>
DVT_DEVICE float2 unpack2(uint32_t pair);
template <>
DVT_DEVICE float2 unpack2<f16>(uint32_t pair) {
  return make_float2(ptx::f16_to_float(static_cast<uint16_t>(pair & 0xffffu)),
                     ptx::f16_to_float(static_cast<uint16_t>(pair >> 16)));
}
template <>
DVT_DEVICE float2 unpack2<bf16>(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

}  // namespace dvt::cuda

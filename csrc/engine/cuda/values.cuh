// Values of the types that tensors of a caller have, one or four at a time, and four at a time of those that products
// take.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "cuda/numeric.cuh"

namespace dvt::cuda {

DVT_DEVICE float load_value(const char* data, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::float32: return reinterpret_cast<const float*>(data)[index];
    case Dtype::float16: return to_float(reinterpret_cast<const f16*>(data)[index]);
    case Dtype::bfloat16: return to_float(reinterpret_cast<const bf16*>(data)[index]);
    default: return to_float(reinterpret_cast<const uint8_t*>(data)[index]);
  }
}

template <class T>
DVT_DEVICE float4 load_four_narrow(const T* p) {
  const uint2 pairs = *reinterpret_cast<const uint2*>(p);
  const float2 low = unpack2<T>(pairs.x), high = unpack2<T>(pairs.y);
  return make_float4(low.x, low.y, high.x, high.y);
}

// Values c .. c + 3 of a row of `dim` that starts at element `offset`; zeros after the last one. vectors: `stride` is 1
// and every such four lies in one piece that is aligned to its size.
DVT_DEVICE float4 load_values(const char* data, Dtype dtype, int64_t offset, int64_t stride, int c, int dim,
                              bool vectors) {
  if (vectors && c + 4 <= dim) {
    const int64_t at = offset + c;
    if (dtype == Dtype::float32) return *reinterpret_cast<const float4*>(reinterpret_cast<const float*>(data) + at);
    if (dtype == Dtype::float16) return load_four_narrow(reinterpret_cast<const f16*>(data) + at);
    return load_four_narrow(reinterpret_cast<const bf16*>(data) + at);
  }
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = c + i < dim ? load_value(data, dtype, offset + (c + i) * stride) : 0.0f;
  return make_float4(v[0], v[1], v[2], v[3]);
}

DVT_DEVICE bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

DVT_DEVICE void store_four(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
DVT_DEVICE void store_four(tf32* p, float4 v) {
  *reinterpret_cast<float4*>(p) = make_float4(from_float<tf32>(v.x).value, from_float<tf32>(v.y).value,
                                              from_float<tf32>(v.z).value, from_float<tf32>(v.w).value);
}
DVT_DEVICE void store_four(f16* p, float4 v) {
  *reinterpret_cast<uint2*>(p) = make_uint2(pack2<f16>(v.x, v.y), pack2<f16>(v.z, v.w));
}
DVT_DEVICE void store_four(bf16* p, float4 v) {
  *reinterpret_cast<uint2*>(p) = make_uint2(pack2<bf16>(v.x, v.y), pack2<bf16>(v.z, v.w));
}

template <class T>
DVT_DEVICE bool store_row_values(T* p, int64_t offset, int64_t stride, int c, int dim, bool vectors, float4 values) {
  const float v[4] = {values.x, values.y, values.z, values.w};
  bool finite = true;
  if (vectors && c + 4 <= dim) store_four(p + offset + c, values);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (c + i < dim) {
      const T narrow = from_float<T>(v[i]);
      finite &= is_finite(to_float(narrow));
      if (!vectors || c + 4 > dim) p[offset + (c + i) * stride] = narrow;
    }
  return finite;
}

// The same way back; false where one is NaN or infinite, or becomes so in a narrower type.
DVT_DEVICE bool store_values(char* data, Dtype dtype, int64_t offset, int64_t stride, int c, int dim, bool vectors,
                             float4 values) {
  if (dtype == Dtype::float32)
    return store_row_values(reinterpret_cast<float*>(data), offset, stride, c, dim, vectors, values);
  if (dtype == Dtype::float16)
    return store_row_values(reinterpret_cast<f16*>(data), offset, stride, c, dim, vectors, values);
  return store_row_values(reinterpret_cast<bf16*>(data), offset, stride, c, dim, vectors, values);
}

}  // namespace dvt::cuda

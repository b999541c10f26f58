// Four or eight neighbouring numbers of a row at a time, as float32, of whichever type they are stored in: 16 bytes an
// access where rows are aligned, one number an access where they are not or where the row ends.
#pragma once

#include "cuda/numeric.cuh"

namespace dvt::cuda {

// v = p[0 .. count), 0 beyond. aligned: p is a multiple of 16 bytes.
template <class T>
DVT_DEVICE void load8(const T* p, int count, bool aligned, float (&v)[8]) {
  if (aligned && count == 8) {
    if constexpr (sizeof(T) == 2) {
      const uint4 x = *reinterpret_cast<const uint4*>(p);
      const float2 a = unpack2<T>(x.x), b = unpack2<T>(x.y), c = unpack2<T>(x.z), d = unpack2<T>(x.w);
      v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y, v[4] = c.x, v[5] = c.y, v[6] = d.x, v[7] = d.y;
    } else {
      const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
      v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] = j < count ? to_float(p[j]) : 0.0f;
}

// p[0 .. count) = v, rounded to T.
template <class T>
DVT_DEVICE void store8(T* p, int count, bool aligned, const float (&v)[8]) {
  if (aligned && count == 8) {
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint4*>(p) =
          make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
    } else {
      float w[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) w[j] = to_float(from_float<T>(v[j]));
      reinterpret_cast<float4*>(p)[0] = make_float4(w[0], w[1], w[2], w[3]);
      reinterpret_cast<float4*>(p)[1] = make_float4(w[4], w[5], w[6], w[7]);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j)
    if (j < count) p[j] = from_float<T>(v[j]);
}

// The same for four numbers: 16 or 8 bytes an access.
template <class T>
DVT_DEVICE void load4(const T* p, int count, bool aligned, float (&v)[4]) {
  if (aligned && count >= 4) {
    if constexpr (sizeof(T) == 2) {
      const uint2 x = *reinterpret_cast<const uint2*>(p);
      const float2 a = unpack2<T>(x.x), b = unpack2<T>(x.y);
      v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
    } else {
      const float4 a = *reinterpret_cast<const float4*>(p);
      v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = j < count ? to_float(p[j]) : 0.0f;
}

template <class T>
DVT_DEVICE void store4(T* p, int count, bool aligned, const float (&v)[4]) {
  if (aligned && count >= 4) {
    if constexpr (sizeof(T) == 2)
      *reinterpret_cast<uint2*>(p) = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
    else
      *reinterpret_cast<float4*>(p) = make_float4(to_float(from_float<T>(v[0])), to_float(from_float<T>(v[1])),
                                                  to_float(from_float<T>(v[2])), to_float(from_float<T>(v[3])));
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < count) p[j] = from_float<T>(v[j]);
}

}  // namespace dvt::cuda

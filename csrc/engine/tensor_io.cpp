#include "engine/tensor_io.h"

#include <cstring>

#include "core/half.h"

namespace dvt {
namespace {

template <class T, class Convert>
void gather(const T* from, int64_t stride, int64_t count, float* to, const Convert& convert) {
  for (int64_t i = 0; i < count; ++i) to[i] = convert(from[i * stride]);
}

// Of 16 bits; whether one has all bits of `exponent`: is NaN or infinite, as it may have become only now.
template <class Convert>
bool scatter(const float* from, uint16_t* to, int64_t stride, int64_t count, uint16_t exponent,
             const Convert& convert) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t narrow = convert(from[i]);
    finite &= (narrow & exponent) != exponent;
    to[i * stride] = narrow;
  }
  return finite;
}

bool all_finite(const float* values, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  }
  return bad == 0;
}

}  // namespace

void read_values(const TensorView& from, int64_t offset, int64_t stride, int64_t count, float* to) {
  switch (from.dtype) {
    case Dtype::float32: {
      const float* p = static_cast<const float*>(from.data) + offset;
      if (stride == 1)
        std::memcpy(to, p, static_cast<size_t>(count) * sizeof(float));
      else
        gather(p, stride, count, to, [](float x) { return x; });
      break;
    }
    case Dtype::float16:
      gather(static_cast<const uint16_t*>(from.data) + offset, stride, count, to, half_to_float);
      break;
    case Dtype::bfloat16:
      gather(static_cast<const uint16_t*>(from.data) + offset, stride, count, to, bfloat16_to_float);
      break;
    case Dtype::uint8:
      gather(static_cast<const uint8_t*>(from.data) + offset, stride, count, to,
             [](uint8_t x) { return static_cast<float>(x); });
      break;
  }
}

bool write_values(const float* from, const TensorView& to, int64_t offset, int64_t stride, int64_t count) {
  switch (to.dtype) {
    case Dtype::float32: {
      float* p = static_cast<float*>(to.data) + offset;
      if (stride == 1)
        std::memcpy(p, from, static_cast<size_t>(count) * sizeof(float));
      else
        for (int64_t i = 0; i < count; ++i) p[i * stride] = from[i];
      return all_finite(from, count);
    }
    case Dtype::float16:
      return scatter(from, static_cast<uint16_t*>(to.data) + offset, stride, count, 0x7c00, float_to_half);
    case Dtype::bfloat16:
      return scatter(from, static_cast<uint16_t*>(to.data) + offset, stride, count, 0x7f80, float_to_bfloat16);
    case Dtype::uint8: break;  // refused before
  }
  return false;
}

}  // namespace dvt

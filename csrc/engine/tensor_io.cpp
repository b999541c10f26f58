#include "engine/tensor_io.h"

#include <cstring>

#include "core/half.h"

namespace dvt {
namespace {

template <class T, class Convert>
void gather(const T* from, int64_t stride, int64_t count, float* to, const Convert& convert) {
  for (int64_t i = 0; i < count; ++i) to[i] = convert(from[i * stride]);
}

template <class T, class Convert>
void scatter(const float* from, T* to, int64_t stride, int64_t count, const Convert& convert) {
  for (int64_t i = 0; i < count; ++i) to[i * stride] = convert(from[i]);
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
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u ? 1u : 0u;  // the exponent of NaN and infinity
  }
  switch (to.dtype) {
    case Dtype::float32: {
      float* p = static_cast<float*>(to.data) + offset;
      if (stride == 1)
        std::memcpy(p, from, static_cast<size_t>(count) * sizeof(float));
      else
        scatter(from, p, stride, count, [](float x) { return x; });
      break;
    }
    case Dtype::float16: scatter(from, static_cast<uint16_t*>(to.data) + offset, stride, count, float_to_half); break;
    case Dtype::bfloat16:
      scatter(from, static_cast<uint16_t*>(to.data) + offset, stride, count, float_to_bfloat16);
      break;
    case Dtype::uint8: break;  // refused before
  }
  return bad == 0;
}

}  // namespace dvt

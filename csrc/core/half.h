// float16 and bfloat16 to float32, exactly, for code that is compiled once. Kernels have simd.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace dvt {

inline float bfloat16_to_float(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline float half_to_float(uint16_t h) {
  // The exponent is shifted by multiplying with 2^112, so subnormal halves come out exact; all without a branch, for
  // loops that become vectors.
  const uint32_t magnitude_bits = static_cast<uint32_t>(h & 0x7fffu) << 13;
  float magnitude;
  std::memcpy(&magnitude, &magnitude_bits, sizeof magnitude);
  magnitude *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &magnitude, sizeof bits);
  const uint32_t infinite_or_nan = magnitude_bits >= 0x0f800000u ? 0x7f800000u : 0u;
  bits |= infinite_or_nan | static_cast<uint32_t>(h & 0x8000u) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

}  // namespace dvt

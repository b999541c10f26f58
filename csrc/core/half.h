// float16 and bfloat16 to float32, exactly, and back, to the nearest even; for code that is compiled once. Kernels have
// simd.h.
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
  // No float in here is subnormal, since whoever calls may have those count as zero; and no branch, for loops that
  // become vectors.
  const uint32_t magnitude = h & 0x7fffu, rebias = 112u << 23;
  const uint32_t normal = (magnitude << 13) + rebias + (magnitude >= 0x7c00u ? rebias : 0u);
  const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  uint32_t bits;
  std::memcpy(&bits, &small, sizeof bits);
  bits = (magnitude < 0x400u ? bits : normal) | static_cast<uint32_t>(h & 0x8000u) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline uint16_t float_to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t float_to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {
    float f;
    std::memcpy(&f, &magnitude, sizeof f);
    f += 0.5f;  // makes the adder round at the right bit of a subnormal half
    uint32_t rounded;
    std::memcpy(&rounded, &f, sizeof rounded);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

}  // namespace dvt

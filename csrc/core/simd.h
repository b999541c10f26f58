// Vectors of floats through the compiler's vector extensions: one source for SSE2, AVX2, AVX-512 and NEON.
//
// Included only by `<op>_kernels.cpp` files, which CMake compiles once an instruction set with DVT_ISA set to its
// name. All functions are static: a shared inline function compiled with AVX-512 could otherwise be the copy that the
// linker keeps for everyone. For the same reason kernels use no standard containers or algorithms
// (tests/test_build.py checks the symbols of the objects).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if !defined(DVT_ISA)
#error "simd.h is for kernel sources, which CMake compiles with DVT_ISA=generic|avx2|avx512|neon"
#endif

#define DVT_TEXT_OF(x) #x
#define DVT_TEXT(x) DVT_TEXT_OF(x)  // DVT_TEXT(DVT_ISA) is its name
#define DVT_INLINE static inline __attribute__((always_inline))
#define DVT_INLINE_MEMBER inline __attribute__((always_inline))

namespace dvt {
namespace DVT_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#else
constexpr int kLanes = 4;
#if defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
#endif

typedef float vfloat __attribute__((vector_size(kLanes * 4)));
typedef int32_t vint __attribute__((vector_size(kLanes * 4)));
typedef float vfloat_unaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

DVT_INLINE vfloat broadcast(float x) { return x - vfloat{}; }  // x - 0 is x for every x, and folds to a broadcast
DVT_INLINE vfloat load(const float* p) { return *reinterpret_cast<const vfloat_unaligned*>(p); }
DVT_INLINE void store(float* p, vfloat v) { *reinterpret_cast<vfloat_unaligned*>(p) = v; }
DVT_INLINE vfloat load_partial(const float* p, int n) {
  vfloat v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}
DVT_INLINE void store_partial(float* p, vfloat v, int n) { std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float)); }
// The larger, the smaller: a > b ? a : b and a < b ? a : b, which GCC makes three instructions of. Where b is NaN the
// result is; where only a is, the result is b on some processors and NaN on others. So a limit stands first.
DVT_INLINE vfloat vmax(vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#elif defined(__aarch64__)
  return (vfloat)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
  return a > b ? a : b;
#endif
}
DVT_INLINE vfloat vmin(vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
  return _mm_min_ps(a, b);
#elif defined(__aarch64__)
  return (vfloat)vminq_f32((float32x4_t)a, (float32x4_t)b);
#else
  return a < b ? a : b;
#endif
}
DVT_INLINE vfloat vsqrt(vfloat x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#elif defined(DVT_NEON)
  return vsqrtq_f32(x);
#else
  vfloat r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrtf(x[i]);
  return r;
#endif
}
DVT_INLINE float sum(vfloat v) {
  // Pairwise, so that the order is the same in every instruction set of one width.
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// float16 <-> float32, round to nearest even; the storage type is uint16_t.
DVT_INLINE float half_to_float(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#elif defined(DVT_NEON)
  __fp16 value;
  std::memcpy(&value, &h, 2);
  return value;
#else
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {
    bits = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x400u) {
    bits = sign | ((magnitude << 13) + (112u << 23));
  } else {  // subnormal; not so as a float, since callers may have those count as zero
    const float f = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
#endif
}
DVT_INLINE uint16_t float_to_half(float x) {
#if defined(__F16C__)
  return _cvtss_sh(x, 0);
#elif defined(DVT_NEON)
  const __fp16 value = static_cast<__fp16>(x);
  uint16_t h;
  std::memcpy(&h, &value, 2);
  return h;
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {
    // Subnormal half: adding 0.5 makes the adder round at the right bit.
    float f;
    std::memcpy(&f, &magnitude, 4);
    f += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &f, 4);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
#endif
}
DVT_INLINE vfloat load(const uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(DVT_NEON)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  vfloat r;
  for (int i = 0; i < kLanes; ++i) r[i] = half_to_float(p[i]);
  return r;
#endif
}
DVT_INLINE vfloat load_partial(const uint16_t* p, int n) {
  vfloat r = {};
  for (int i = 0; i < n; ++i) r[i] = half_to_float(p[i]);
  return r;
}
DVT_INLINE void store(uint16_t* p, vfloat v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 0));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0));
#elif defined(DVT_NEON)
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(v[i]);
#endif
}
DVT_INLINE void store_partial(uint16_t* p, vfloat v, int n) {
  for (int i = 0; i < n; ++i) p[i] = float_to_half(v[i]);
}

}  // namespace DVT_ISA
}  // namespace dvt

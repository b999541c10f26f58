// Widening float16 rows and testing for NaN and infinity, one instruction set a compilation.
#include "core/simd.h"
#include "field/features/features.h"

namespace dvt {
namespace DVT_ISA {
namespace {

void widen(const uint16_t* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = half_to_float(from[i]);
}

// A number is NaN or infinite exactly when all bits of its exponent are set; integers leave the loops branch-free.
bool finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !bad;
}
bool finite_half(const uint16_t* x, int64_t n) {
  uint16_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= (x[i] & 0x7c00u) == 0x7c00u;
  return !bad;
}

}  // namespace

const FeaturesKernels features_kernels = {widen, finite, finite_half};

}  // namespace DVT_ISA
}  // namespace dvt

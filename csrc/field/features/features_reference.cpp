// float16 from its bits, for tests.
#include <cmath>

#include "field/features/features.h"

namespace dvt {

void gather_features_reference(const Features& features, const int64_t* index, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < features.channels; ++c) {
      const int64_t at = index[i] * features.channels + c;
      float& to = out[i * features.channels + c];
      if (!features.half) {
        to = static_cast<const float*>(features.data)[at];
        continue;
      }
      const uint16_t bits = static_cast<const uint16_t*>(features.data)[at];
      const int exponent = (bits >> 10) & 31;
      const double significand = bits & 1023;
      double magnitude = exponent ? std::ldexp(1024 + significand, exponent - 25) : std::ldexp(significand, -24);
      if (exponent == 31) magnitude = significand > 0 ? NAN : INFINITY;
      to = static_cast<float>(bits & 0x8000 ? -magnitude : magnitude);
    }
}

}  // namespace dvt

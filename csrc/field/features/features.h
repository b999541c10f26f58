// The feature bank, [rows, C] in float32 or float16: checked once for NaN and infinity, then read row by row as
// float32. The bank is the one large array of a fit (3.2 GB in float32 at the official size), so it is never converted
// as a whole; a step's rows are.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace dvt {

struct Features {
  const void* data;  // [rows, channels], C-contiguous
  bool half;         // float16 rather than float32
  int64_t rows, channels;
};

// out [n, C] = features[index [n]].
void gather_features(const Features& features, const int64_t* index, int64_t n, float* out);
void gather_features_reference(const Features& features, const int64_t* index, int64_t n, float* out);

// The flat position of the first NaN or infinity, or -1.
int64_t first_non_finite(const Features& features);

struct FeaturesKernels {
  void (*widen)(const uint16_t* from, int64_t n, float* to);
  bool (*finite)(const float* x, int64_t n);
  bool (*finite_half)(const uint16_t* x, int64_t n);
};
DVT_DECLARE_KERNELS(FeaturesKernels, features_kernels)

}  // namespace dvt

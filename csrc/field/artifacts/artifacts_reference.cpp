#include <algorithm>

#include "field/artifacts/artifacts.h"

namespace dvt {

void artifacts_forward_reference(const float* artifacts, const int32_t* patch, int64_t n, int64_t channels,
                                 float* out) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < channels; ++c) out[i * channels + c] += artifacts[patch[i] * channels + c];
}

void artifacts_backward_reference(const float* d_out, const int32_t* patch, int64_t n, int64_t patches,
                                  int64_t channels, double* d_artifacts) {
  std::fill_n(d_artifacts, patches * channels, 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < channels; ++c)
      d_artifacts[patch[i] * channels + c] += static_cast<double>(d_out[i * channels + c]);
}

}  // namespace dvt

#include "field/artifacts/artifacts.h"

#include <algorithm>
#include <cstring>

#include "core/threads.h"

namespace dvt {

void artifacts_forward(const float* artifacts, const int32_t* patch, int64_t n, int64_t channels, float* out) {
  parallel_for(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      artifacts_kernels().add(artifacts + patch[i] * channels, channels, out + i * channels);
  });
}

void artifacts_backward(const float* d_out, const int32_t* patch, int64_t n, int64_t patches, int64_t channels,
                        int32_t* order, float* d_artifacts) {
  // Counting sort: after the second loop ends[p] is where patch p's samples start, after the third where they end.
  int32_t* ends = order + n;
  std::fill_n(ends, patches + 1, 0);
  for (int64_t i = 0; i < n; ++i) ++ends[patch[i] + 1];
  for (int64_t p = 0; p < patches; ++p) ends[p + 1] += ends[p];
  for (int64_t i = 0; i < n; ++i) order[ends[patch[i]]++] = static_cast<int32_t>(i);
  parallel_for(patches, 16, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* row = d_artifacts + p * channels;
      std::memset(row, 0, static_cast<size_t>(channels) * sizeof(float));
      for (int32_t i = p > 0 ? ends[p - 1] : 0; i < ends[p]; ++i)
        artifacts_kernels().add(d_out + order[i] * channels, channels, row);
    }
  });
}

}  // namespace dvt

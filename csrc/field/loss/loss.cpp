#include "field/loss/loss.h"

#include "core/threads.h"

namespace dvt {

Losses loss_forward_backward(const LossWeights& weights, const float* base, const float* residual, const float* raw,
                             int64_t n, int64_t channels, float* rows, float* d_base, float* d_residual) {
  const float unit = weights.scale / static_cast<float>(n);
  parallel_for(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * channels;
      loss_kernels().row(weights, unit, base + at, residual ? residual + at : nullptr, raw + at, channels, rows + 4 * i,
                         d_base + at, residual ? d_residual + at : nullptr);
    }
  });
  double sums[4] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int k = 0; k < 4; ++k) sums[k] += static_cast<double>(rows[4 * i + k]);
  const double count = static_cast<double>(n);
  return {sums[0] / count, sums[1] / count, sums[2] / count, sums[3] / count};
}

}  // namespace dvt

// The losses from their formulas in double, for tests.
#include <algorithm>
#include <cmath>

#include "field/loss/loss.h"

namespace dvt {

Losses loss_reference(const LossWeights& weights, const float* base, const float* residual, const float* raw, int64_t n,
                      int64_t channels, double* d_base, double* d_residual) {
  Losses losses;
  const double samples = static_cast<double>(n), elements = samples * static_cast<double>(channels);
  const double floor = kCosineEps, scale = weights.scale;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t first = i * channels, last = first + channels;
    const auto h = [&](int64_t j) { return residual ? static_cast<double>(residual[j]) : 0.0; };
    const auto x = [&](int64_t j) { return base[j] + h(j); };
    double dot = 0, xx = 0, yy = 0;
    for (int64_t j = first; j < last; ++j) {
      dot += x(j) * raw[j];
      xx += x(j) * x(j);
      yy += static_cast<double>(raw[j]) * raw[j];
    }
    const double x_length = std::max(std::sqrt(xx), floor), y_length = std::max(std::sqrt(yy), floor);
    const double cosine = dot / (x_length * y_length);
    losses.cosine += (1 - cosine) / samples;
    for (int64_t j = first; j < last; ++j) {
      const double y = raw[j];
      losses.mse += (x(j) - y) * (x(j) - y) / elements;
      const double d_length = std::sqrt(xx) > floor ? cosine * x(j) / xx : 0.0;
      d_base[j] = scale * (2 * (x(j) - y) / elements + (d_length - y / (x_length * y_length)) / samples);
      if (!residual) continue;
      const double error = h(j) - (y - base[j]), sign = h(j) > 0 ? 1 : (h(j) < 0 ? -1 : 0);
      losses.residual_mse += error * error / elements;
      losses.residual_l1 += std::abs(h(j)) / elements;
      d_residual[j] = scale * (2 * weights.residual_mse * error + weights.residual_l1 * sign) / elements;
    }
  }
  return losses;
}

}  // namespace dvt

// One Adam step from the formulas, in double, for tests.
#include <cmath>

#include "field/adam/adam.h"

namespace dvt {

void adam_update_reference(const AdamOptions& options, AdamStep step, int64_t n, const float* grads, float* params,
                           float* exp_avg, float* exp_avg_sq) {
  for (int64_t i = 0; i < n; ++i) {
    const double p = params[i], g = grads[i] + options.weight_decay * p;
    const double m = options.beta1 * exp_avg[i] + (1 - options.beta1) * g;
    const double v = options.beta2 * exp_avg_sq[i] + (1 - options.beta2) * g * g;
    const double denominator = std::sqrt(v) / step.bias_correction2_sqrt + options.eps;
    exp_avg[i] = static_cast<float>(m);
    exp_avg_sq[i] = static_cast<float>(v);
    params[i] = static_cast<float>(p - step.step_size * m / denominator);
  }
}

}  // namespace dvt

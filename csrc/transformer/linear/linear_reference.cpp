#include "transformer/linear/linear.h"

namespace dvt {

void linear_reference(const LinearWeights& weights, int64_t rows, const float* x, double* y) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < weights.out; ++o) {
      double sum = weights.bias.empty() ? 0.0 : weights.bias[static_cast<size_t>(o)];
      for (int64_t i = 0; i < weights.in; ++i)
        sum += static_cast<double>(weights.weight[static_cast<size_t>(o * weights.in + i)]) * x[r * weights.in + i];
      y[r * weights.out + o] = sum;
    }
}

}  // namespace dvt

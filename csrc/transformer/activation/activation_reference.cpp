// The activations from their formulas in double, for tests.
#include <cmath>

#include "transformer/activation/activation.h"

namespace dvt {
namespace {

double activation_of(Activation activation, double x) {
  const double sqrt2 = std::sqrt(2.0), pi = std::acos(-1.0);
  switch (activation) {
    case Activation::gelu: return 0.5 * x * std::erfc(-x / sqrt2);
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / pi) * (x + 0.044715 * x * x * x)));
    case Activation::quick_gelu: return x / (1 + std::exp(-1.702 * x));
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::relu: return x < 0 ? 0 : x;
  }
  return NAN;
}

}  // namespace

void activation_reference(Activation activation, const float* x, int64_t n, double* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = activation_of(activation, x[i]);
}

}  // namespace dvt

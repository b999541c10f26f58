#include "transformer/activation/activation.h"

namespace dvt {

void activation_forward(Activation activation, const float* x, int64_t n, float* y) {
  activation_kernels().forward(activation, x, n, y);
}

void exponential_forward(Exponential exponential, const float* x, int64_t n, float* y) {
  activation_kernels().exponential(exponential, x, n, y);
}

}  // namespace dvt

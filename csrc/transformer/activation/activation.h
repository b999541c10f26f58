// The activations of a transformer's MLP, y = activation(x), an element at a time.
//
// The linear layer applies them while it stores (`activate` in activate.h); here they are on their own, with the
// exponentials of core/vector_math.h beside them, so that tests can measure each against double.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace dvt {

// gelu: x Phi(x), the exact one. gelu_tanh: its approximation with tanh. quick_gelu: x sigmoid(1.702 x).
enum class Activation { gelu, gelu_tanh, quick_gelu, silu, relu };

enum class Exponential { exp, exp2, exp_nonpositive };

// x, y: n elements each, may be the same.
void activation_forward(Activation activation, const float* x, int64_t n, float* y);
void activation_reference(Activation activation, const float* x, int64_t n, double* y);

void exponential_forward(Exponential exponential, const float* x, int64_t n, float* y);

struct ActivationKernels {
  void (*forward)(Activation activation, const float* x, int64_t n, float* y);
  void (*exponential)(Exponential exponential, const float* x, int64_t n, float* y);
};
DVT_DECLARE_KERNELS(ActivationKernels, activation_kernels)

}  // namespace dvt

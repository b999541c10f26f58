// Activations over an array, one instruction set a compilation.
#include "transformer/activation/activate.h"

namespace dvt {
namespace DVT_ISA {
namespace {

template <class Function>
DVT_INLINE void map(const float* x, int64_t n, float* y, Function function) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, function(load(x + i)));
  const int rest = static_cast<int>(n - i);
  if (rest > 0) store_partial(y + i, function(load_partial(x + i, rest)), rest);
}

template <Activation kActivation>
void map_activation(const float* x, int64_t n, float* y) {
  map(x, n, y, [](vfloat v) { return activate<kActivation>(v); });
}

void forward(Activation activation, const float* x, int64_t n, float* y) {
  switch (activation) {
    case Activation::gelu: return map_activation<Activation::gelu>(x, n, y);
    case Activation::gelu_tanh: return map_activation<Activation::gelu_tanh>(x, n, y);
    case Activation::quick_gelu: return map_activation<Activation::quick_gelu>(x, n, y);
    case Activation::silu: return map_activation<Activation::silu>(x, n, y);
    case Activation::relu: return map_activation<Activation::relu>(x, n, y);
  }
}

void exponential(Exponential exponential, const float* x, int64_t n, float* y) {
  switch (exponential) {
    case Exponential::exp: return map(x, n, y, [](vfloat v) { return vexp(v); });
    case Exponential::exp2: return map(x, n, y, [](vfloat v) { return vexp2(v); });
    case Exponential::exp_nonpositive: return map(x, n, y, [](vfloat v) { return vexp_nonpositive(v); });
  }
}

}  // namespace

const ActivationKernels activation_kernels = {forward, exponential};

}  // namespace DVT_ISA
}  // namespace dvt

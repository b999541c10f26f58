// An activation on a vector, for the kernels that apply one to what they are about to store.
#pragma once

#include "core/vector_math.h"
#include "transformer/activation/activation.h"

namespace dvt {
namespace DVT_ISA {

template <Activation kActivation>
DVT_INLINE vfloat activate(vfloat x) {
  switch (kActivation) {
    case Activation::gelu: return vgelu(x);
    case Activation::gelu_tanh: return vgelu_tanh(x);
    case Activation::quick_gelu: return vquick_gelu(x);
    case Activation::silu: return vsilu(x);
    case Activation::relu: return vrelu(x);
  }
  __builtin_unreachable();
}

}  // namespace DVT_ISA
}  // namespace dvt

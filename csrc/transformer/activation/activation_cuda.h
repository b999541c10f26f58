// Names of activations, for the ops by name.
#pragma once

#include <string>

#include "core/status.h"
#include "transformer/activation/activation.h"

namespace dvt::cuda {

// gelu, gelu_tanh, quick_gelu, silu or relu.
Status parse_activation(const std::string& name, Activation* activation);

}  // namespace dvt::cuda

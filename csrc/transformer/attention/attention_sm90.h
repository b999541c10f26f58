// Attention on Hopper (attention_sm90.cu).
#pragma once

#include "transformer/attention/attention_cuda.h"

namespace dvt::cuda {

// Sets *taken to false, and does nothing, where the device is not of compute capability 9.0, or the call not of 16-bit
// heads of 64 or 128. The call is one that was checked.
Status attention_forward_sm90(const AttentionCudaCall& call, bool* taken);

}  // namespace dvt::cuda

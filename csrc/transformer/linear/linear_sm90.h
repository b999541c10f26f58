// The products of linear_cuda.h on Hopper (linear_sm90.cu).
#pragma once

#include "transformer/linear/linear_cuda.h"

namespace dvt::cuda {

// Sets *taken to false, and does nothing, where the device is not of compute capability 9.0, x is not 16-bit, or rows
// of x or of the weight are not aligned to 16 bytes. The call is one that was checked.
Status linear_forward_sm90(const LinearCudaCall& call, bool* taken);

}  // namespace dvt::cuda

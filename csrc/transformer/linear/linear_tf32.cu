// Products of linear_cuda.h of type tf32.
#include "transformer/linear/linear.cuh"

namespace dvt::cuda {

Status linear_tf32(const LinearCudaCall& call, const DeviceTraits& traits) {
  return linear_of_type<tf32, Precision::once>(call, traits);
}

}  // namespace dvt::cuda

// Products of linear_cuda.h of type bfloat16.
#include "transformer/linear/linear.cuh"

namespace dvt::cuda {

Status linear_bfloat16(const LinearCudaCall& call, const DeviceTraits& traits) {
  return linear_of_type<bf16, Precision::once>(call, traits);
}

}  // namespace dvt::cuda

// Products of linear_cuda.h of type float16.
#include "transformer/linear/linear.cuh"

namespace dvt::cuda {

Status linear_float16(const LinearCudaCall& call, const DeviceTraits& traits) {
  return linear_of_type<f16, Precision::once>(call, traits);
}

}  // namespace dvt::cuda

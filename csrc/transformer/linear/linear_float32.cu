// Products of linear_cuda.h of type float32.
#include "transformer/linear/linear.cuh"

namespace dvt::cuda {

Status linear_float32(const LinearCudaCall& call, const DeviceTraits& traits) {
  return linear_of_type<float, Precision::compensated>(call, traits);
}

}  // namespace dvt::cuda

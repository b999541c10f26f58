#include <algorithm>

#include "cuda/numeric.cuh"
#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "field/decomposition/decomposition_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    residual_kernel(const T* features, const float* semantics, const float* artifacts, int64_t count, float* raw,
                    float* residual) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const float x = to_float(features[i]);
    raw[i] = x;
    residual[i] = x - semantics[i] - artifacts[i];
  }
}

template <class T>
Status run(const void* features, const float* semantics, const float* artifacts, int64_t count, float* raw,
           float* residual, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(count, kThreads), 4096));
  Launch how;
  how.grid = dim3(blocks);
  how.block = dim3(kThreads);
  how.stream = stream;
  return launch("residual", residual_kernel<T>, how, static_cast<const T*>(features), semantics, artifacts, count, raw,
                residual);
}

}  // namespace

Status residual_forward(const void* features, Dtype type, const float* semantics, const float* artifacts, int64_t count,
                        float* raw, float* residual, cudaStream_t stream) {
  if (count == 0) return Status();
  switch (type) {
    case Dtype::float32: return run<float>(features, semantics, artifacts, count, raw, residual, stream);
    case Dtype::float16: return run<f16>(features, semantics, artifacts, count, raw, residual, stream);
    case Dtype::bfloat16: return run<bf16>(features, semantics, artifacts, count, raw, residual, stream);
    default: return invalid_argument("features must be float32, float16 or bfloat16, got ", dtype_name(type));
  }
}

}  // namespace dvt::cuda

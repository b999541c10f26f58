// What is left of a view's features once semantics and artifacts are known, on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"

namespace dvt::cuda {

// raw [count] = features [count] as float32, residual [count] = raw - semantics - artifacts, both float32.
// 4 to 6 bytes are read and 8 written for each: a call of microseconds.
Status residual_forward(const void* features, Dtype type, const float* semantics, const float* artifacts, int64_t count,
                        float* raw, float* residual, cudaStream_t stream);

}  // namespace dvt::cuda

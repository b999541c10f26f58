// The artifact map G on the device: the gradient of each row, and Adam on it, in one kernel. Reading G is the loss's
// (loss_cuda.h). All pointers are device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "field/adam/adam_cuda.h"

namespace dvt::cuda {

struct ArtifactsCall {
  int64_t n = 0, patches = 0;
  int64_t ld = 0;                  // columns of all arrays, a multiple of 4; those beyond C are zero in d_base
  const float* d_base = nullptr;   // [N, ld]
  const int32_t* patch = nullptr;  // [N]
  AdamConstants constants{AdamOptions()};
  const AdamStep* steps = nullptr;                                     // of step 1, 2, ...
  float *params = nullptr, *exp_avg = nullptr, *exp_avg_sq = nullptr;  // [P, ld]
};

// G moves by the step clock->step + offset + 1 with the gradient sum of d_base by patch, in the order of the samples.
Status artifacts_update(const ArtifactsCall& call, const FitClock* clock, int offset, cudaStream_t stream);
// The gradient itself, to d_artifacts [P, ld]; nothing moves.
Status artifacts_backward(const ArtifactsCall& call, float* d_artifacts, cudaStream_t stream);

}  // namespace dvt::cuda

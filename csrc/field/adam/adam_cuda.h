// Adam on the device; adam.h says what it computes. All pointers are device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "field/adam/adam.h"

namespace dvt::cuda {

// What every kernel of a fit reads its time from: a graph of k steps has offsets 0 ... k - 1 in its kernels, and one
// kernel at its end moves the clock, so that the same graph serves every step.
struct FitClock {
  int32_t step;    // steps taken; a kernel's own is step + offset
  uint32_t epoch;  // the mark of the entries that the batch of `step` reads (lazy_grid_cuda.h)
};

// params, exp_avg, exp_avg_sq, grads: [n].
Status adam_update(const AdamConstants& constants, AdamStep step, int64_t n, const float* grads, float* params,
                   float* exp_avg, float* exp_avg_sq, cudaStream_t stream);

// LazyAdam::catch_up (grads null) and LazyAdam::update (grads [count, width]) of entries [count], each at most once.
// steps: the table of factors, on the device; table.last_step and the rest too.
Status lazy_adam_update(const AdamConstants& constants, const AdamStep* steps, const AdamTable& table,
                        const uint32_t* entries, int64_t count, const float* grads, int32_t step, cudaStream_t stream);

}  // namespace dvt::cuda

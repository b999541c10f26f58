// The hash grid of a fit on the device: which entries a batch reads, their encoding, their gradients, and Adam, lazy
// and exact (adam.h).
//
// Dense Adam would read and write 2.5 million entries a step, of which a batch of 2,048 reads at most 131,072. Lazily,
// an entry that is read is brought up to date first, a chain of up to thousands of steps that each take a square root
// and two divisions: too long to wait for. Two things take it off the step's path:
//   - the next batch is known before this step is done, so its entries are found and brought up to date meanwhile;
//   - a window of all entries is brought up to date too, another one each step, so that no entry is ever more than
//     `window_steps` behind.
// What is replayed is what a step without a gradient does, so it may happen any time after the entry's last gradient
// and before its next reading: bits do not depend on it.
//
// Marks: claims[e] is the epoch of the last batch that reads entry e. While step t runs, whose batch has epoch E, the
// next batch claims with E + 1 and brings to step t + 1 the entries whose claim was not E: those get a gradient at step
// t, and Adam with it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "field/adam/adam_cuda.h"
#include "field/features/batch_cuda.h"
#include "field/hash_grid/hash_grid.h"

namespace dvt::cuda {

// All of it device memory.
struct LazyGrid {
  HashGrid grid;
  AdamConstants constants{AdamOptions()};
  const AdamStep* steps = nullptr;                                     // of step 1, 2, ... at [0], [1], ...
  float *params = nullptr, *exp_avg = nullptr, *exp_avg_sq = nullptr;  // [entries, F]
  int32_t* last_step = nullptr;                                        // [entries]: brought to the end of it
  uint32_t* claims = nullptr;                                          // [entries], zero at first
  uint32_t* slots = nullptr;   // [2, entries]: where an entry's gradient is, for batches of even and odd epoch
  uint32_t* lists = nullptr;   // [2, max_count]: the entry of each slot
  uint32_t* counts = nullptr;  // [4]: how many slots the batch of epoch E has, at E % 4
  int64_t max_count = 0;       // the most that a batch can read
  // Gradients of the batch in hand, [max_count, F], zero between steps: floats, or 64-bit fixed point.
  float* grads = nullptr;
  unsigned long long* fixed_grads = nullptr;
  float fixed_scale = 1.0f, fixed_limit = 1.0f;
  int window = 0;  // entries of a sweep

  bool fixed() const { return fixed_grads != nullptr; }
};

int64_t lazy_grid_max_count(const HashGrid& grid, int64_t batch);

// A new epoch, with nothing claimed: before the first step of a run.
Status lazy_grid_begin(const LazyGrid& lazy, FitClock* clock, cudaStream_t stream);

// Lists the entries that the batch of the clock's step + offset + 1 reads and brings them to the end of step + offset,
// counted from 0. offset -1: the batch of the clock's own step, with no step under way.
Status lazy_grid_prepare(const LazyGrid& lazy, const Bank& bank, const Batch& batch, int offset, cudaStream_t stream);

// Brings this step's window to the end of step + offset; after the prepare of the same offset.
Status lazy_grid_sweep(const LazyGrid& lazy, const FitClock* clock, int offset, cudaStream_t stream);
// Brings all entries to the clock's step; with no step under way.
Status lazy_grid_flush(const LazyGrid& lazy, const FitClock* clock, cudaStream_t stream);

// out [N, ld] = the encoding of the batch of step + offset; rows [N] and patch [N] receive which rows of the bank and
// which patches they are.
Status lazy_grid_forward(const LazyGrid& lazy, const Bank& bank, const Batch& batch, int offset, Operand operand,
                         void* out, int64_t ld, int64_t* rows, int32_t* patch, cudaStream_t stream);

// Adds d_out [N, ld] to the gradients of the entries that were read.
Status lazy_grid_backward(const LazyGrid& lazy, const Bank& bank, const Batch& batch, int offset, const float* d_out,
                          int64_t ld, const int64_t* rows, cudaStream_t stream);

// Adam's step + offset + 1 for the entries of the batch, whose gradients are zeroed.
Status lazy_grid_update(const LazyGrid& lazy, const FitClock* clock, int offset, cudaStream_t stream);
// Instead of a step: the gradients, to d_params [entries, F], zero elsewhere.
Status lazy_grid_gradients(const LazyGrid& lazy, const FitClock* clock, float* d_params, cudaStream_t stream);

}  // namespace dvt::cuda

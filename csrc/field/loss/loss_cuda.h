// The losses of stage 1 and their gradients on the device; loss.h says what they are. All pointers are device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "field/features/batch_cuda.h"
#include "field/loss/loss.h"

namespace dvt::cuda {

// What a fit leaves for the host to read between graphs.
struct FitStatus {
  double mse, cosine, residual_mse, residual_l1;  // of the last step
  double bad_loss;                                // the first loss that was NaN or infinite,
  int32_t bad_step;                               // and after how many steps it came; 0: none has
  int32_t unused;
};

struct LossCall {
  LossWeights weights;
  int64_t n = 0;
  const float* field = nullptr;      // [N, ld]: F
  const float* artifacts = nullptr;  // [P, ld]: G, of which row patch[i] is added
  const float* residual = nullptr;   // [N, ld]: h; null in the first phase
  int64_t ld = 0;                    // of these and of the gradients: a multiple of 8, at least C
  const int64_t* rows = nullptr;     // [N]: rows of the bank
  const int32_t* patch = nullptr;    // [N]
  float* row_losses = nullptr;       // [N, 4]
  // Gradients [N, ld], as operands, zero beyond C; d_base also in float32 where that is not null.
  Operand operand = Operand::tf32;
  void* d_base = nullptr;
  void* d_residual = nullptr;
  float* d_base_float = nullptr;
};

Status loss_forward_backward(const LossCall& call, const Bank& bank, cudaStream_t stream);

// The means of row_losses [N, 4], added in double and always in the same order, to status; their total to
// history[clock->step + offset]. clock null: history[0].
Status loss_sum(const LossWeights& weights, const float* row_losses, int64_t n, const FitClock* clock, int offset,
                float* history, FitStatus* status, cudaStream_t stream);

}  // namespace dvt::cuda

// The losses of stage 1 and their gradients, a sample (one row of C channels) at a time.
//
// With base = F + G, the reconstruction is base in the first phase, base + h in the second:
//   L = mean |reconstruction - raw|^2 / C + mean (1 - cos(reconstruction, raw))
//     + residual_mse * mean |h - (raw - base)|^2 / C + residual_l1 * mean |h|_1 / C          (second phase)
// The first line moves base only and the second h only (stop-gradients of the paper's recipe); the cosine divides by
// norms of at least 1e-8. A row is read once and stays in L1 for both lines. Row sums are added in double in the order
// of the rows.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace dvt {

struct LossWeights {
  float residual_mse = 0.1f, residual_l1 = 0.02f;
  float scale = 1.0f;  // of the gradients only: a loss scale, as of mixed-precision training
};

struct Losses {
  double mse = 0, cosine = 0, residual_mse = 0, residual_l1 = 0;  // means, before their weights

  double total(const LossWeights& w) const {
    return mse + cosine + static_cast<double>(w.residual_mse) * residual_mse +
           static_cast<double>(w.residual_l1) * residual_l1;
  }
};

// base, raw, d_base [N, C]; residual, d_residual [N, C] or null (first phase); rows: a workspace of 4 N floats.
Losses loss_forward_backward(const LossWeights& weights, const float* base, const float* residual, const float* raw,
                             int64_t n, int64_t channels, float* rows, float* d_base, float* d_residual);
Losses loss_reference(const LossWeights& weights, const float* base, const float* residual, const float* raw, int64_t n,
                      int64_t channels, double* d_base, double* d_residual);

constexpr float kCosineEps = 1e-8f;

struct LossKernels {
  // One row. unit: what a mean over the samples multiplies its gradient with, scale / N; sums [4] are the row's Losses.
  void (*row)(const LossWeights& weights, float unit, const float* base, const float* residual, const float* raw,
              int64_t channels, float* sums, float* d_base, float* d_residual);
};
DVT_DECLARE_KERNELS(LossKernels, loss_kernels)

}  // namespace dvt

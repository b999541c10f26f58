// Adam with coupled weight decay, and its exact lazy form for parameters that most steps do not touch.
//
// One step, as torch.optim.Adam on the CPU computes it (single-tensor, float32), operation for operation, with fused
// multiply-adds where torch fuses:
//   g += weight_decay * p;  m += (1 - beta1) * (g - m);  v = v * beta2 + (1 - beta2) * g * g
//   p += -step_size * m / (sqrt(v) / bias_correction2_sqrt + eps)
//
// Lazy: with weight decay and eps 1e-15 an entry moves every step, touched or not, but what it does while its gradient
// is zero depends on nothing else. So each entry keeps the step it was last brought to, and its missed steps are
// replayed in registers when it is read next. Same arithmetic in the same order: the same bits as the dense form,
// without reading and writing every entry at every step. Replay is a chain of a square root and two divisions a step; a
// block of entries runs it in lock step to fill the pipeline, entries being sorted by what they missed so that a block
// starts nearly together.
#pragma once

#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/isa.h"

namespace dvt {

struct AdamOptions {
  double beta1 = 0.9, beta2 = 0.99, eps = 1e-15, weight_decay = 1e-5;
};

// What depends on the step: lr / (1 - beta1^t) and sqrt(1 - beta2^t).
struct AdamStep {
  float step_size, bias_correction2_sqrt;
};
AdamStep adam_step_factors(const AdamOptions& options, double lr, int64_t t);

// The constants of AdamOptions as the float32 operands that torch makes of them.
struct AdamConstants {
  explicit AdamConstants(const AdamOptions& o)
      : one_minus_beta1(static_cast<float>(1 - o.beta1)),
        beta2(static_cast<float>(o.beta2)),
        one_minus_beta2(static_cast<float>(1 - o.beta2)),
        eps(static_cast<float>(o.eps)),
        weight_decay(static_cast<float>(o.weight_decay)) {}
  float one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay;
};

// params, exp_avg, exp_avg_sq, grads: [n].
void adam_update(const AdamOptions& options, AdamStep step, int64_t n, const float* grads, float* params,
                 float* exp_avg, float* exp_avg_sq);
void adam_update_reference(const AdamOptions& options, AdamStep step, int64_t n, const float* grads, float* params,
                           float* exp_avg, float* exp_avg_sq);

// A table of parameters and moments, [entries, width], and the step each entry has been brought to.
struct AdamTable {
  int64_t entries;
  int width;  // 1, 2, 4 or 8
  float *params, *exp_avg, *exp_avg_sq;
  int32_t* last_step;  // [entries]
};

class LazyAdam {
 public:
  // steps: the factors of steps 1, 2, ... at [0], [1], ...
  LazyAdam(const AdamOptions& options, std::vector<AdamStep> steps, AdamTable table, int64_t max_count);

  // Brings the listed entries (each at most once) to the end of `step`, their missed gradients being zero.
  void catch_up(const uint32_t* entries, int64_t count, int64_t step);
  // Takes `step` for entries that are at step - 1, with grads [count, width].
  void update(const uint32_t* entries, int64_t count, const float* grads, int64_t step);
  // catch_up of every entry.
  void flush(int64_t step);

 private:
  AdamConstants constants_;
  std::vector<AdamStep> steps_;
  AdamTable table_;
  int64_t max_count_;
  Buffer<uint32_t> order_;
  Buffer<int32_t> missed_;
  std::vector<int32_t> histogram_;
};

struct AdamKernels {
  int block_floats;  // entries_per_block = block_floats / width
  void (*update)(const AdamConstants& constants, AdamStep step, int64_t n, const float* grads, float* params,
                 float* exp_avg, float* exp_avg_sq);
  // One block of `count` entries (`count * width <= block_floats`) to the end of `step`; grads [count, width], when not
  // null, are those of `step` itself, and every earlier missed gradient is zero. The entries of the block that comes
  // next, when not null, are prefetched meanwhile.
  void (*replay)(const AdamConstants& constants, const AdamStep* steps, const AdamTable& table, const uint32_t* entries,
                 int count, const float* grads, int32_t step, const uint32_t* next, int next_count);
};
DVT_DECLARE_KERNELS(AdamKernels, adam_kernels)

}  // namespace dvt

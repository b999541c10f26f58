// The fit of solver "hashgrid" on a device: what lies in its memory, a step as kernels on branching streams, graphs of
// steps, and the loop around them. hashgrid_backend.h is what others see of it.
//
// A step of the first phase, the arrows being dependencies and rows what may run at once:
//
//   encode -> F layer 0 -> F layer 1 -> loss -> d layer 1 -> d layer 0 -> scatter -> Adam of touched entries
//     |                                   |         |            '-> d_W, Adam of layer 0
//     |                                   |         '-> d_W, Adam of layer 1
//     |                                   '-> sum of losses        '-> d_G, Adam
//     '-> the next batch's entries up to date -> a window of all entries up to date
//
// In the second phase h takes the place of G: gather -> h's three layers beside F's, and the same backwards.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/runtime.h"
#include "field/artifacts/artifacts_cuda.h"
#include "field/cuda/fit_stream.h"
#include "field/cuda/hashgrid_backend.h"
#include "field/hash_grid/lazy_grid_cuda.h"
#include "field/loss/loss_cuda.h"
#include "field/mlp/mlp_cuda.h"

namespace dvt::cuda {

class HashgridFit final : public HashgridFitterCuda {
 public:
  static Status make(const HashgridCudaOptions& options, const HashgridCudaProblem& problem,
                     std::unique_ptr<HashgridFit>* out);
  ~HashgridFit() override;

  Status run(int64_t count, const int64_t* samples, int64_t report_every, const Progress& progress) override;
  Status gradients(const int64_t* samples, bool second_phase, const HashgridParameters& grads, Losses* losses) override;
  Status parameters(const HashgridParameters& to) override;
  Status set_parameters(const HashgridParameters& from) override;
  Status decomposition(float* semantics, float* artifacts, float* residual, bool to_device) override;
  Status query(const float* coords, int64_t n, float* out, bool on_device) override;

  const HashgridRecipe& recipe() const override { return recipe_; }
  int64_t step() const override { return step_; }
  Losses losses() const override { return losses_; }
  const std::vector<float>& loss_history() const override { return loss_history_; }
  int64_t device_bytes() const override {
    return static_cast<int64_t>(state_.bytes()) + features_.count() + 4 * coords_.count() + 8 * samples_.count();
  }

  // The parts of a run, for several fits at once. `start`, then `advance` until it says that nothing is left, then
  // `finish`; or `finish` at once, after which steps that were enqueued are done.
  Status start(int64_t count, const int64_t* samples);
  // Enqueues some steps, and looks at those before them, which are then done. *more: whether there is more to do.
  Status advance(int64_t report_every, const Progress& progress, bool* more);
  Status finish();

 private:
  // Steps that were enqueued and not yet looked at.
  struct Pending {
    int64_t first, last;
    int slot;
  };
  static constexpr int kSlots = 2;

  HashgridFit() = default;
  // Gives out all device pointers from `base` on, and returns how many bytes that is; zeroed: of them, from the
  // beginning, those that have to be zero at first.
  size_t lay_out(char* base, size_t* zeroed);
  Status allocate();
  Status check_problem(const HashgridCudaProblem& problem);
  Status upload_tables();
  Status check_samples(const int64_t* samples, int64_t count) const;
  Status upload_samples(const int64_t* samples, int64_t count);

  // All of these enqueue. `offset`: which step after the clock's.
  Status enqueue_forward(int offset, bool second_phase);
  Status enqueue_update(const MlpCuda& mlp, int layer, const void* d_y, const void* x, int offset, cudaStream_t from);
  Status enqueue_step(int offset, bool second_phase, bool prepare_next);
  Status advance_clock(int64_t steps);
  Status launch_graph(bool second_phase);
  Status enqueue_some();
  Status look(const Pending& pending);

  // F at `n` of a bank's rows from `first` on, in float32, to out [n, ld(C)].
  Status evaluate_field(const Bank& bank, int64_t first, int64_t n, float* out);
  Status evaluate_residual(int64_t first, int64_t n, float* out);
  Batch rows_from(int64_t first, int64_t n);
  MlpCuda in_float(const MlpCuda& mlp) const;

  // Pitch, in elements, of rows of C channels.
  int64_t ld() const { return (recipe_.size.channels + 7) / 8 * 8; }

  HashgridCudaOptions options_;
  HashgridRecipe recipe_;
  Operand operand_ = Operand::tf32;
  int device_ = 0, multiprocessors_ = 1;
  int64_t step_ = 0;      // steps that are done, as far as the host knows
  int64_t enqueued_ = 0;  // and that were enqueued
  int64_t until_ = 0;     // where the run ends
  int64_t reported_ = 0;
  Losses losses_;
  std::vector<float> loss_history_;
  std::vector<Pending> pending_;  // oldest first
  int next_slot_ = 0;

  FitStream stream_;
  cudaEvent_t done_[kSlots] = {};
  FitStatus* seen_ = nullptr;               // [kSlots], pinned
  std::map<bool, cudaGraphExec_t> graphs_;  // by phase
  DeviceMemory state_;                      // everything of a fixed size
  DeviceBuffer<char> features_;             // where they came from main memory
  DeviceBuffer<float> coords_;
  DeviceBuffer<int64_t> samples_;  // given ones

  Bank bank_;
  Batch batch_;
  LazyGrid lazy_;
  MlpCuda field_, residual_;
  ArtifactsCall artifacts_;
  LossCall loss_;
  FitClock* clock_ = nullptr;
  FitStatus* status_ = nullptr;
  float* history_ = nullptr;  // [steps]
  AdamStep *steps_ = nullptr, *residual_steps_ = nullptr;
  // Of one step; operands have room for float32.
  void *encoding_ = nullptr, *hidden_ = nullptr, *d_hidden_ = nullptr, *raw_ = nullptr;
  void *residual_hidden_[2] = {}, *d_residual_hidden_[2] = {};
  float *base_ = nullptr, *h_ = nullptr, *d_encoding_ = nullptr;
  void *d_base_ = nullptr, *d_h_ = nullptr;
  float* d_base_float_ = nullptr;
  int64_t* bad_ = nullptr;
};

}  // namespace dvt::cuda

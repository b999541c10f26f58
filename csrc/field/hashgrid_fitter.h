// Solver "hashgrid": the paper's two-phase recipe as one native loop (Yang et al., "Denoising Vision Transformers",
// ECCV 2024, stage 1).
//
// A step draws `batch` random patches from all views, predicts them as F(coords) + G[patch] (first half of the steps)
// or F + G + h(raw) with G frozen (second half), and takes one Adam step (losses: loss/loss.h; h's Adam counts its own
// steps). Of the hash grid only the entries that the batch reads are brought up to date, get gradients and move; all
// others are replayed exactly when they are read next (adam/adam.h).
//
// What grows with the grid, the patches or the batch is allocated when the fitter is made; steps allocate nothing but
// the packing buffers that each thread of a matrix product keeps. Same seed, same bits, for any number of threads.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/buffer.h"
#include "core/status.h"
#include "field/adam/adam.h"
#include "field/features/features.h"
#include "field/hash_grid/hash_grid.h"
#include "field/hash_grid/touched_entries.h"
#include "field/hashgrid_recipe.h"
#include "field/loss/loss.h"
#include "field/mlp/mlp.h"
#include "field/semantics_field.h"

namespace dvt {

// The views, which outlive the fitter. The last view is the whole image.
struct HashgridProblem {
  const void* features;  // [V, H, W, C]
  bool half;             // float16 rather than float32
  const float* coords;   // [V, H, W, 2] in [0, 1]
  int64_t views, height, width, channels;
};

class HashgridFitter {
 public:
  // Called every `report_every` steps and after the last; false stops the fit.
  using Progress = std::function<bool(int64_t step, int64_t steps, double loss)>;

  static Status make(const HashgridOptions& options, const HashgridProblem& problem,
                     std::unique_ptr<HashgridFitter>* fitter);

  // Runs up to `count` of the steps that are left. samples [count, batch], when not null, replaces the random patches
  // (flat indices into [V, H, W]). Fails with `cancelled`, or with `non_finite` and the number of the step.
  Status run(int64_t count, const int64_t* samples, int64_t report_every, const Progress& progress);

  // Losses and all gradients at the present parameters for `batch` samples, of the first or the second phase; grads are
  // overwritten. Nothing moves.
  Status gradients(const int64_t* samples, bool second_phase, const HashgridParameters& grads, Losses* losses);

  // The parameters, every lazy entry brought up to date. They may be written before the first step.
  HashgridParameters parameters();
  SemanticsField field();

  // F at the last view's coordinates, G, and h of the last view's features, [H, W, C] each.
  Status decomposition(float* semantics, float* artifacts, float* residual);

  const HashGrid& grid() const { return grid_; }
  const MlpShape& field_mlp() const { return field_mlp_; }
  const MlpShape& residual_mlp() const { return residual_mlp_; }
  const HashgridRecipe& recipe() const { return recipe_; }
  int64_t batch() const { return options_.batch; }
  int64_t step() const { return step_; }
  int64_t steps() const { return options_.steps; }
  int64_t patches() const { return problem_.height * problem_.width; }
  const Losses& losses() const { return losses_; }
  const std::vector<float>& loss_history() const { return loss_history_; }  // total, one a step taken

 private:
  HashgridFitter(const HashgridRecipe& recipe, const HashgridProblem& problem);
  Status check_samples(const int64_t* samples, int64_t count) const;
  void forward_backward(const int64_t* samples, bool second_phase);
  void take_step(const int64_t* samples);

  // Parameters of one dense group, their gradients and their moments.
  struct Group {
    explicit Group(int64_t count);
    void update(const AdamOptions& options, AdamStep step);
    int64_t count;
    Buffer<float> params, grads, exp_avg, exp_avg_sq;
  };

  HashgridRecipe recipe_;
  HashgridOptions options_;
  HashgridProblem problem_;
  Features features_;
  HashGrid grid_;
  MlpShape field_mlp_, residual_mlp_;
  int64_t step_ = 0;
  Losses losses_;
  std::vector<float> loss_history_;

  Group field_, artifacts_, residual_;
  Buffer<float> grid_params_, grid_exp_avg_, grid_exp_avg_sq_, grid_grads_;
  Buffer<int32_t> grid_last_step_;
  TouchedEntries touched_;
  LazyAdam grid_adam_;

  // Of one step, for N = batch samples.
  Buffer<int64_t> samples_;                                 // [N]
  Buffer<int32_t> patch_, patch_order_;                     // [N], [N + H W + 1]
  Buffer<uint32_t> indices_;                                // [L, N, 4]
  Buffer<float> coords_, weights_, encoding_, d_encoding_;  // [N, 2], [L, N, 4], [N, L F]
  Buffer<float> hidden_, residual_hidden_, d_hidden_;
  Buffer<float> raw_, base_, h_, d_base_, d_h_;  // [N, C]
  Buffer<float> loss_rows_;                      // [N, 4]
};

}  // namespace dvt

// Solver "hashgrid", the part that is the same on every device: options and what they may be, the sizes of F, G and h,
// the schedule, the random streams and the initial values.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"
#include "field/adam/adam.h"
#include "field/hash_grid/hash_grid.h"
#include "field/loss/loss.h"
#include "field/mlp/mlp.h"

namespace dvt {

struct HashgridOptions {
  int64_t steps = 25000, batch = 2048;
  uint64_t seed = 0;
  HashGridConfig grid;
  int64_t hidden_dim = 0, residual_dim = 0;  // 0: C / 2 and C / 4, at least 1
  double lr = 0.01, lr_final = 0.001;
  double warmup = 0.1;  // the share of the steps over which the rate rises linearly; then a cosine to lr_final
  AdamOptions adam;
  LossWeights loss;
};

// The learning rate of step 0, 1, ...
double hashgrid_learning_rate(const HashgridOptions& options, int64_t step);

// The views' size: features are [views, height, width, channels].
struct HashgridSize {
  int64_t views, height, width, channels;
  int64_t patches() const { return height * width; }
  int64_t rows() const { return views * height * width; }
};

// Streams of the seed: the initial values, then the patches of step 0, 1, ...
enum HashgridStream : uint64_t { kGrid, kField, kArtifacts, kResidual, kFirstStep };

// All parameters, or their gradients.
struct HashgridParameters {
  float* grid;       // [entries, n_features]
  float* field;      // MLP L * F -> hidden_dim -> C
  float* artifacts;  // [H * W, C]
  float* residual;   // MLP C -> residual_dim -> residual_dim -> C
};

// What the options make of features of that size.
struct HashgridRecipe {
  HashgridOptions options;
  HashgridSize size;
  HashGrid grid;
  MlpShape field_mlp, residual_mlp;

  // Checks the options first.
  static Status make(const HashgridOptions& options, const HashgridSize& size, HashgridRecipe* recipe);

  int64_t first_phase() const { return options.steps / 2; }  // steps of it
  // Adam's factors of every step: of F and G; and of h, whose Adam counts the steps of the second phase.
  std::vector<AdamStep> adam_steps() const;
  AdamStep residual_adam_step(int64_t step) const;
  void initialise(const HashgridParameters& parameters) const;
  // "the features have a NaN at view ..." of the flat position `bad`.
  Status non_finite_feature(int64_t bad) const;
};

}  // namespace dvt

// The semantics field F, a function of image coordinates: hash grid, then MLP. Read-only; training is the fitter's.
#pragma once

#include "field/hash_grid/hash_grid.h"
#include "field/mlp/mlp.h"

namespace dvt {

struct SemanticsField {
  HashGrid grid;
  MlpShape mlp;              // [L * F, hidden, C]
  const float* grid_params;  // [entries, F]
  const float* mlp_params;   // [mlp.n_params()]

  // coords [N, 2] -> out [N, C].
  void query(const float* coords, int64_t n, float* out) const;
};

}  // namespace dvt

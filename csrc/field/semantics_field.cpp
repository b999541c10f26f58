#include "field/semantics_field.h"

#include <algorithm>

#include "core/buffer.h"

namespace dvt {

void SemanticsField::query(const float* coords, int64_t n, float* out) const {
  const int64_t chunk = std::min<int64_t>(n, 4096), reads = chunk * grid.n_corners() * grid.n_levels;
  Buffer<uint32_t> indices(reads);
  Buffer<float> weights(reads), encoding(chunk * grid.n_outputs()), hidden(chunk * mlp.n_hidden());
  for (int64_t first = 0; first < n; first += chunk) {
    const int64_t points = std::min(chunk, n - first);
    hash_grid_corners(grid, coords + first * grid.n_dims, points, indices.data(), weights.data());
    hash_grid_forward(grid, grid_params, indices.data(), weights.data(), points, encoding.data());
    mlp_forward(mlp, mlp_params, encoding.data(), points, hidden.data(), out + first * mlp.outputs());
  }
}

}  // namespace dvt

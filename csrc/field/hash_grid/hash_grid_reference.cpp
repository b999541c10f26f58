// The hash grid from its definition, for tests: one point, one level, one corner at a time, in double.
#include <cmath>

#include "field/hash_grid/hash_grid.h"

namespace dvt {
namespace {

// Calls visit(entry, weight, slopes [n_dims], level) for every corner of point x.
template <class Visit>
void for_each_corner(const HashGrid& grid, const float* x, Visit&& visit) {
  for (int l = 0; l < grid.n_levels; ++l) {
    const HashGridLevel& level = grid.levels[l];
    for (int c = 0; c < grid.n_corners(); ++c) {
      uint32_t position[3];
      double factor[3], slope_sign[3];
      for (int d = 0; d < grid.n_dims; ++d) {
        const float p = std::fmaf(level.scale, x[d], 0.5f);
        const bool upper = (c >> d) & 1;
        position[d] = static_cast<uint32_t>(static_cast<int32_t>(std::floor(p))) + upper;
        const double fraction = static_cast<double>(p) - std::floor(p);
        factor[d] = upper ? fraction : 1 - fraction;
        slope_sign[d] = upper ? 1 : -1;
      }
      double weight = 1, slopes[3];
      for (int d = 0; d < grid.n_dims; ++d) weight *= factor[d];
      for (int d = 0; d < grid.n_dims; ++d) {
        slopes[d] = slope_sign[d] * level.scale;
        for (int e = 0; e < grid.n_dims; ++e)
          if (e != d) slopes[d] *= factor[e];
      }
      visit(int64_t{level.offset} + hash_grid_entry(level, grid.n_dims, position), weight, slopes, l);
    }
  }
}

}  // namespace

void hash_grid_forward_reference(const HashGrid& grid, const float* params, const float* coords, int64_t n,
                                 float* out) {
  const int features = grid.n_features;
  for (int64_t i = 0; i < n; ++i) {
    double sums[kMaxHashGridLevels * 8] = {};
    for_each_corner(grid, coords + i * grid.n_dims, [&](int64_t entry, double weight, const double*, int l) {
      for (int f = 0; f < features; ++f)
        sums[l * features + f] += weight * static_cast<double>(params[entry * features + f]);
    });
    for (int f = 0; f < grid.n_outputs(); ++f) out[i * grid.n_outputs() + f] = static_cast<float>(sums[f]);
  }
}

void hash_grid_backward_reference(const HashGrid& grid, const float* params, const float* coords, const float* d_out,
                                  int64_t n, double* d_params, double* d_coords) {
  const int features = grid.n_features, dims = grid.n_dims;
  for (int64_t i = 0; i < n * dims; ++i) d_coords[i] = 0;
  for (int64_t i = 0; i < n; ++i)
    for_each_corner(grid, coords + i * dims, [&](int64_t entry, double weight, const double* slopes, int l) {
      for (int f = 0; f < features; ++f) {
        const double d = d_out[i * grid.n_outputs() + l * features + f];
        d_params[entry * features + f] += weight * d;
        for (int k = 0; k < dims; ++k)
          d_coords[i * dims + k] += slopes[k] * d * static_cast<double>(params[entry * features + f]);
      }
    });
}

}  // namespace dvt

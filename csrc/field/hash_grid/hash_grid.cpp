// Layout and threads of the hash grid; the arithmetic is in hash_grid_kernels.cpp.
#include "field/hash_grid/hash_grid.h"

#include <algorithm>
#include <cmath>

#include "core/threads.h"

namespace dvt {
namespace {

constexpr int64_t kPointsPerTask = 64;

}  // namespace

Status make_hash_grid(const HashGridConfig& config, HashGrid* grid) {
  if (config.n_dims != 2 && config.n_dims != 3)
    return invalid_argument("n_input_dims must be 2 or 3, got ", config.n_dims);
  if (config.n_levels < 1 || config.n_levels > kMaxHashGridLevels)
    return invalid_argument("n_levels must be 1 to ", kMaxHashGridLevels, ", got ", config.n_levels);
  const int f = config.n_features_per_level;
  if (f != 1 && f != 2 && f != 4 && f != 8)
    return invalid_argument("n_features_per_level must be 1, 2, 4 or 8, got ", f);
  if (config.log2_hashmap_size < 3 || config.log2_hashmap_size > 26)
    return invalid_argument("log2_hashmap_size must be 3 to 26, got ", config.log2_hashmap_size);
  if (config.base_resolution < 2)
    return invalid_argument("base_resolution must be at least 2, got ", config.base_resolution);
  if (!(config.per_level_scale >= 1.0f))
    return invalid_argument("per_level_scale must be at least 1, got ", config.per_level_scale);

  *grid = HashGrid{config.n_dims, config.n_levels, f, 0, {}};
  const float log2_scale = static_cast<float>(std::log2(static_cast<double>(config.per_level_scale)));
  for (int l = 0; l < config.n_levels; ++l) {
    // exp2 in double and then rounded: float32 libraries differ in the last bit, and ceil makes a corner of it.
    const float growth = static_cast<float>(std::exp2(static_cast<double>(static_cast<float>(l) * log2_scale)));
    const float scale = growth * static_cast<float>(config.base_resolution) - 1.0f;
    if (!(scale < 1e6f)) return invalid_argument("the resolution of level ", l, " is beyond a million");
    const uint32_t resolution = static_cast<uint32_t>(std::ceil(scale)) + 1;
    const double corners = std::pow(static_cast<double>(resolution), config.n_dims);
    const double rounded = std::ceil(corners / 8) * 8;
    const uint32_t limit = 1u << config.log2_hashmap_size;
    const uint32_t entries = rounded < limit ? static_cast<uint32_t>(rounded) : limit;
    grid->levels[l] = HashGridLevel{scale, resolution, entries, static_cast<uint32_t>(grid->entries)};
    grid->entries += entries;
  }
  return Status();
}

void hash_grid_corners(const HashGrid& grid, const float* coords, int64_t n, uint32_t* indices, float* weights) {
  parallel_for(n, kPointsPerTask, [&](int64_t begin, int64_t end) {
    hash_grid_kernels().corners(grid, coords, n, begin, end, indices, weights);
  });
}

void hash_grid_forward(const HashGrid& grid, const float* params, const uint32_t* indices, const float* weights,
                       int64_t n, float* out) {
  parallel_for(n, kPointsPerTask, [&](int64_t begin, int64_t end) {
    hash_grid_kernels().forward(grid, params, indices, weights, n, begin, end, out);
  });
}

void hash_grid_backward_params(const HashGrid& grid, const float* d_out, const uint32_t* indices, const float* weights,
                               int64_t n, float* d_params) {
  parallel_for(grid.n_levels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l)
      hash_grid_kernels().backward_params(grid, d_out, indices, weights, n, static_cast<int>(l), d_params);
  });
}

void hash_grid_backward_coords(const HashGrid& grid, const float* params, const float* coords, const float* d_out,
                               int64_t n, float* d_coords) {
  parallel_for(n, kPointsPerTask, [&](int64_t begin, int64_t end) {
    hash_grid_kernels().backward_coords(grid, params, coords, d_out, begin, end, d_coords);
  });
}

}  // namespace dvt

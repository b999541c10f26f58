// Multi-resolution hash grid with linear interpolation: tiny-cuda-nn's parameter layout and index mathematics.
//
// Level l is a grid of `resolution` corners a side with F features a corner. A point reads the 2^D corners around it,
// weighs them linearly, and its encoding is the L results one after another: [N, L * F]. Levels whose corners fit
// into 2^log2_hashmap_size entries are stored densely; the others hash (Mueller et al., "Instant Neural Graphics
// Primitives", 2022). Parameters are one flat array, [entries, F], level after level.
//
// Corners (which entries, which weights) are computed once and then serve the forward pass, the gradient and the
// optimiser's list of touched entries. Gradients are summed a level by one thread in the order of the points: the same
// bits for any number of threads, and no atomics.
#pragma once

#include <math.h>  // the C functions, which CUDA has too

#include <cstdint>

#include "core/host_device.h"
#include "core/isa.h"
#include "core/status.h"

namespace dvt {

struct HashGridConfig {
  int n_dims = 2;  // 2 or 3
  int n_levels = 16;
  int n_features_per_level = 8;  // 1, 2, 4 or 8
  int log2_hashmap_size = 20;
  int base_resolution = 16;
  float per_level_scale = 1.3195079f;  // (1024 / 16)^(1 / 15)
};

struct HashGridLevel {
  float scale;          // a coordinate of 1 lies at scale + 0.5 corners
  uint32_t resolution;  // corners a side
  uint32_t entries;     // of this level
  uint32_t offset;      // entries of the levels before it
};

constexpr int kMaxHashGridLevels = 32;

struct HashGrid {
  int n_dims, n_levels, n_features;
  int64_t entries;  // of all levels; parameters are entries * n_features
  HashGridLevel levels[kMaxHashGridLevels];

  int n_corners() const { return 1 << n_dims; }
  int n_outputs() const { return n_levels * n_features; }
  int64_t n_params() const { return entries * n_features; }
};

Status make_hash_grid(const HashGridConfig& config, HashGrid* grid);

// The entry, within its level, of the corner at `position` ([n_dims]).
DVT_HOST_DEVICE uint32_t hash_grid_entry(const HashGridLevel& level, int n_dims, const uint32_t* position) {
  uint64_t stride = 1;
  uint32_t index = 0;
  for (int d = 0; d < n_dims && stride <= level.entries; ++d) {
    index += position[d] * static_cast<uint32_t>(stride);
    stride *= level.resolution;
  }
  if (level.entries < stride) {
    const uint32_t primes[3] = {1u, 2654435761u, 805459861u};
    index = 0;
    for (int d = 0; d < n_dims; ++d) index ^= position[d] * primes[d];
  }
  return index < level.entries ? index : index % level.entries;
}

// Where a coordinate lies on a level: its lower corner, and the fraction of the way to the next.
DVT_HOST_DEVICE void hash_grid_position(float scale, float x, uint32_t* corner, float* fraction) {
  const float position = fmaf(scale, x, 0.5f);
  const float lower = floorf(position);
  *corner = static_cast<uint32_t>(static_cast<int32_t>(lower));
  *fraction = position - lower;
}

// coords [N, D] -> indices [L, N, 2^D] into the entries of all levels, weights [L, N, 2^D].
// Corner c is one further along dimension d where bit d of c is set.
void hash_grid_corners(const HashGrid& grid, const float* coords, int64_t n, uint32_t* indices, float* weights);

// params [entries, F] -> out [N, L * F].
void hash_grid_forward(const HashGrid& grid, const float* params, const uint32_t* indices, const float* weights,
                       int64_t n, float* out);

// Adds to d_params [*, F] what d_out [N, L * F] sends there. `indices` may be those of hash_grid_corners or any
// renumbering in which no two levels share a number (TouchedEntries).
void hash_grid_backward_params(const HashGrid& grid, const float* d_out, const uint32_t* indices, const float* weights,
                               int64_t n, float* d_params);

// d_coords [N, D], through the weights (the indices are piecewise constant).
void hash_grid_backward_coords(const HashGrid& grid, const float* params, const float* coords, const float* d_out,
                               int64_t n, float* d_coords);

// The same from the definition, one point at a time, summed in double.
void hash_grid_forward_reference(const HashGrid& grid, const float* params, const float* coords, int64_t n, float* out);
void hash_grid_backward_reference(const HashGrid& grid, const float* params, const float* coords, const float* d_out,
                                  int64_t n, double* d_params, double* d_coords);

struct HashGridKernels {
  // Points [begin, end) of n, all levels.
  void (*corners)(const HashGrid& grid, const float* coords, int64_t n, int64_t begin, int64_t end, uint32_t* indices,
                  float* weights);
  void (*forward)(const HashGrid& grid, const float* params, const uint32_t* indices, const float* weights, int64_t n,
                  int64_t begin, int64_t end, float* out);
  void (*backward_coords)(const HashGrid& grid, const float* params, const float* coords, const float* d_out,
                          int64_t begin, int64_t end, float* d_coords);
  // All points, one level.
  void (*backward_params)(const HashGrid& grid, const float* d_out, const uint32_t* indices, const float* weights,
                          int64_t n, int level, float* d_params);
};
DVT_DECLARE_KERNELS(HashGridKernels, hash_grid_kernels)

}  // namespace dvt

// Corners, interpolation and its gradients, one instruction set a compilation. An entry's F features are one small
// vector, so a corner costs one load and one multiply-add; F is a template argument for that.
#include "core/simd.h"
#include "field/hash_grid/hash_grid.h"

namespace dvt {
namespace DVT_ISA {
namespace {

template <int F>
struct Features {
  typedef float Vector __attribute__((vector_size(F * 4)));
  typedef float Unaligned __attribute__((vector_size(F * 4), aligned(4), may_alias));
  DVT_INLINE Vector read(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  DVT_INLINE void write(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
};

template <int D>
void corners_of(const HashGrid& grid, const float* coords, int64_t n, int64_t begin, int64_t end, uint32_t* indices,
                float* weights) {
  constexpr int kCorners = 1 << D;
  for (int l = 0; l < grid.n_levels; ++l) {
    const HashGridLevel level = grid.levels[l];
    for (int64_t i = begin; i < end; ++i) {
      uint32_t lower[D];
      float fraction[D];
      for (int d = 0; d < D; ++d) hash_grid_position(level.scale, coords[i * D + d], &lower[d], &fraction[d]);
      const int64_t at = (l * n + i) * kCorners;
      for (int c = 0; c < kCorners; ++c) {
        uint32_t position[D];
        float weight = 1.0f;
        for (int d = 0; d < D; ++d) {
          const bool upper = c >> d & 1;
          position[d] = lower[d] + upper;
          weight *= upper ? fraction[d] : 1.0f - fraction[d];
        }
        indices[at + c] = level.offset + hash_grid_entry(level, D, position);
        weights[at + c] = weight;
      }
    }
  }
}

void corners(const HashGrid& grid, const float* coords, int64_t n, int64_t begin, int64_t end, uint32_t* indices,
             float* weights) {
  (grid.n_dims == 2 ? corners_of<2> : corners_of<3>)(grid, coords, n, begin, end, indices, weights);
}

template <int F>
void forward_of(const HashGrid& grid, const float* params, const uint32_t* indices, const float* weights, int64_t n,
                int64_t begin, int64_t end, float* out) {
  const int corners = grid.n_corners(), width = grid.n_outputs();
  for (int l = 0; l < grid.n_levels; ++l)
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t* index = indices + (l * n + i) * corners;
      const float* weight = weights + (l * n + i) * corners;
      typename Features<F>::Vector sum = {};
      for (int c = 0; c < corners; ++c) sum += weight[c] * Features<F>::read(params + int64_t{index[c]} * F);
      Features<F>::write(out + i * width + l * F, sum);
    }
}

template <int F>
void backward_params_of(const HashGrid& grid, const float* d_out, const uint32_t* indices, const float* weights,
                        int64_t n, int level, float* d_params) {
  const int corners = grid.n_corners(), width = grid.n_outputs();
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t* index = indices + (level * n + i) * corners;
    const float* weight = weights + (level * n + i) * corners;
    const typename Features<F>::Vector d = Features<F>::read(d_out + i * width + level * F);
    for (int c = 0; c < corners; ++c) {
      float* to = d_params + int64_t{index[c]} * F;
      Features<F>::write(to, Features<F>::read(to) + weight[c] * d);
    }
  }
}

template <int F>
void backward_coords_of(const HashGrid& grid, const float* params, const float* coords, const float* d_out,
                        int64_t begin, int64_t end, float* d_coords) {
  const int dims = grid.n_dims, corners = grid.n_corners(), width = grid.n_outputs();
  for (int64_t i = begin; i < end; ++i) {
    float d_x[3] = {};
    for (int l = 0; l < grid.n_levels; ++l) {
      const HashGridLevel level = grid.levels[l];
      uint32_t lower[3];
      float fraction[3];
      for (int d = 0; d < dims; ++d) hash_grid_position(level.scale, coords[i * dims + d], &lower[d], &fraction[d]);
      for (int c = 0; c < corners; ++c) {
        uint32_t position[3];
        for (int d = 0; d < dims; ++d) position[d] = lower[d] + (c >> d & 1);
        const int64_t entry = level.offset + hash_grid_entry(level, dims, position);
        float dot = 0.0f;
        for (int f = 0; f < F; ++f) dot += params[entry * F + f] * d_out[i * width + l * F + f];
        for (int d = 0; d < dims; ++d) {
          float slope = (c >> d & 1) ? level.scale : -level.scale;
          for (int e = 0; e < dims; ++e)
            if (e != d) slope *= (c >> e & 1) ? fraction[e] : 1.0f - fraction[e];
          d_x[d] += slope * dot;
        }
      }
    }
    for (int d = 0; d < dims; ++d) d_coords[i * dims + d] = d_x[d];
  }
}

// Calls Template<F> with the arguments, for the F of the grid.
#define DVT_FOR_FEATURES(function, ...)             \
  switch (grid.n_features) {                        \
    case 1: return function<1>(grid, __VA_ARGS__);  \
    case 2: return function<2>(grid, __VA_ARGS__);  \
    case 4: return function<4>(grid, __VA_ARGS__);  \
    default: return function<8>(grid, __VA_ARGS__); \
  }

void forward(const HashGrid& grid, const float* params, const uint32_t* indices, const float* weights, int64_t n,
             int64_t begin, int64_t end, float* out) {
  DVT_FOR_FEATURES(forward_of, params, indices, weights, n, begin, end, out)
}
void backward_params(const HashGrid& grid, const float* d_out, const uint32_t* indices, const float* weights, int64_t n,
                     int level, float* d_params) {
  DVT_FOR_FEATURES(backward_params_of, d_out, indices, weights, n, level, d_params)
}
void backward_coords(const HashGrid& grid, const float* params, const float* coords, const float* d_out, int64_t begin,
                     int64_t end, float* d_coords) {
  DVT_FOR_FEATURES(backward_coords_of, params, coords, d_out, begin, end, d_coords)
}

}  // namespace

const HashGridKernels hash_grid_kernels = {corners, forward, backward_coords, backward_params};

}  // namespace DVT_ISA
}  // namespace dvt

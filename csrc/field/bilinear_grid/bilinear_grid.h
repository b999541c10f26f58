// A field on the unit square given at the nodes of a regular grid, bilinear in between.
//
// Node (i, j) of a grid with ny x nx nodes lies at y = i / (ny - 1), x = j / (nx - 1) and has index i * nx + j. A point
// touches the four nodes of its cell: `Tap` holds the lower one and the position in the cell. A view of features
// [patches, channels] is one tap, one weight and one row of channels a patch; patch p of every view shares row p of the
// artifact map.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace dvt {

struct GridShape {
  int64_t ny, nx;  // at least 2 each
  int64_t nodes() const { return ny * nx; }
};

struct Tap {
  int32_t node;  // the others are node + 1, node + nx and node + nx + 1
  float fx, fy;  // in [0, 1]
};

// (x, y) in [0, 1], clamped to it; NaN is taken for 0.
static inline Tap locate(GridShape grid, float x, float y) {
  const float px = (x > 0 ? (x < 1 ? x : 1) : 0) * static_cast<float>(grid.nx - 1);
  const float py = (y > 0 ? (y < 1 ? y : 1) : 0) * static_cast<float>(grid.ny - 1);
  int64_t jx = static_cast<int64_t>(px), jy = static_cast<int64_t>(py);
  if (jx > grid.nx - 2) jx = grid.nx - 2;
  if (jy > grid.ny - 2) jy = grid.ny - 2;
  return {static_cast<int32_t>(jy * grid.nx + jx), px - static_cast<float>(jx), py - static_cast<float>(jy)};
}
void locate(GridShape grid, int64_t n, const float* coords, Tap* taps);

// The weights of a tap's four nodes, in the order of `Tap`.
struct TapWeights {
  float w[4];
};
static inline TapWeights tap_weights(const Tap& t) {
  return {{(1 - t.fx) * (1 - t.fy), t.fx * (1 - t.fy), (1 - t.fx) * t.fy, t.fx * t.fy}};
}

// out[i] = sum_k w_k nodes[node_k]: nodes [ny * nx, channels], out [count, channels].
void interpolate(GridShape grid, int64_t count, const Tap* taps, int64_t channels, const float* nodes, float* out);
void interpolate_reference(GridShape grid, int64_t count, const Tap* taps, int64_t channels, const float* nodes,
                           float* out);

// The transpose, for several views at once: node_sums[node_k] += weight_i w_k values[i], and patch_sums[i] += weight_i
// values[i] where patch_sums is given. values[v] [count, channels] float32 or float16 (uint16_t), taps and weights
// [views, count]; node_sums [ny * nx, channels]; patch_sums [count, channels]. Threads share the channels, so the
// result does not depend on their number.
template <class T>
void scatter(GridShape grid, int64_t views, int64_t count, const Tap* taps, const float* weights, int64_t channels,
             const T* const* values, float* node_sums, float* patch_sums);
void scatter_reference(GridShape grid, int64_t count, const Tap* taps, const float* weights, int64_t channels,
                       const float* values, float* node_sums, float* patch_sums);

// out[i] = | values[i] - interpolate(nodes)[i] - artifacts[i] |^2 over the channels; artifacts [count, channels].
template <class T>
void residual_energy(GridShape grid, int64_t count, const Tap* taps, int64_t channels, const T* values,
                     const float* nodes, const float* artifacts, float* out);

// The sums that fit a gain a patch and channel: with f = interpolate(nodes) - centre and e = values - f - centre -
// artifacts, cross[i] += weight_i e f and square[i] += weight_i f^2. artifacts, cross, square [count, channels]; centre
// [channels]; the rest as for scatter.
template <class T>
void gain_sums(GridShape grid, int64_t views, int64_t count, const Tap* taps, const float* weights, int64_t channels,
               const T* const* values, const float* nodes, const float* centre, const float* artifacts, float* cross,
               float* square);

// scatter of the rows -gain[i] * (interpolate(nodes) - centre); gain [count, channels].
void scatter_gain(GridShape grid, int64_t views, int64_t count, const Tap* taps, const float* weights, int64_t channels,
                  const float* gain, const float* nodes, const float* centre, float* node_sums, float* patch_sums);

// patch_sums[i] -= weight_i interpolate(nodes)[i], over all views; as for scatter.
void subtract_field(GridShape grid, int64_t views, int64_t count, const Tap* taps, const float* weights,
                    int64_t channels, const float* nodes, float* patch_sums);

struct BilinearKernels {
  void (*interpolate)(int64_t count, int64_t nx, const Tap* taps, int64_t channels, const float* nodes, float* out);
  // Channels [c0, c1) only.
  void (*scatter_f32)(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                      int64_t c1, const float* values, float* node_sums, float* patch_sums);
  void (*scatter_f16)(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                      int64_t c1, const uint16_t* values, float* node_sums, float* patch_sums);
  void (*residual_f32)(int64_t count, int64_t nx, const Tap* taps, int64_t channels, const float* values,
                       const float* nodes, const float* artifacts, float* out);
  void (*residual_f16)(int64_t count, int64_t nx, const Tap* taps, int64_t channels, const uint16_t* values,
                       const float* nodes, const float* artifacts, float* out);
  void (*gain_sums_f32)(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                        int64_t c1, const float* values, const float* nodes, const float* centre,
                        const float* artifacts, float* cross, float* square);
  void (*gain_sums_f16)(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                        int64_t c1, const uint16_t* values, const float* nodes, const float* centre,
                        const float* artifacts, float* cross, float* square);
  void (*scatter_gain)(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                       int64_t c1, const float* gain, const float* nodes, const float* centre, float* node_sums,
                       float* patch_sums);
  void (*subtract_field)(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                         int64_t c1, const float* nodes, float* patch_sums);
  bool (*all_finite)(int64_t count, const float* values);
  // float32 -> float16, round to nearest even, of finite values; returns the largest magnitude.
  float (*to_half)(int64_t count, const float* from, uint16_t* to);
  // out[i] = |values[i]|^2 over the channels.
  void (*energy)(int64_t count, int64_t channels, const float* values, float* out);
};
DVT_DECLARE_KERNELS(BilinearKernels, bilinear_kernels)

}  // namespace dvt

#include "field/bilinear_grid/bilinear_grid.h"

namespace dvt {
namespace {

int64_t node_of(GridShape grid, const Tap& tap, int k) { return tap.node + (k & 1) + (k >> 1) * grid.nx; }

}  // namespace

void interpolate_reference(GridShape grid, int64_t count, const Tap* taps, int64_t channels, const float* nodes,
                           float* out) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int k = 0; k < 4; ++k) sum += tap_weights(taps[i]).w[k] * nodes[node_of(grid, taps[i], k) * channels + c];
      out[i * channels + c] = static_cast<float>(sum);
    }
}

void scatter_reference(GridShape grid, int64_t count, const Tap* taps, const float* weights, int64_t channels,
                       const float* values, float* node_sums, float* patch_sums) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      const float value = weights[i] * values[i * channels + c];
      for (int k = 0; k < 4; ++k)
        node_sums[node_of(grid, taps[i], k) * channels + c] += tap_weights(taps[i]).w[k] * value;
      if (patch_sums) patch_sums[i * channels + c] += value;
    }
}

}  // namespace dvt

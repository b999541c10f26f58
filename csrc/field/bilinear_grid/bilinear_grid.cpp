#include "field/bilinear_grid/bilinear_grid.h"

#include <algorithm>
#include <type_traits>

#include "core/threads.h"

namespace dvt {

void locate(GridShape grid, int64_t n, const float* coords, Tap* taps) {
  for (int64_t i = 0; i < n; ++i) taps[i] = locate(grid, coords[2 * i], coords[2 * i + 1]);
}

void interpolate(GridShape grid, int64_t count, const Tap* taps, int64_t channels, const float* nodes, float* out) {
  const auto kernel = bilinear_kernels().interpolate;
  parallel_for(count, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
    kernel(end - begin, grid.nx, taps + begin, channels, nodes, out + begin * channels);
  });
}

template <class T>
void scatter(GridShape grid, int64_t count, const Tap* taps, const float* weights, int64_t channels, const T* values,
             float* node_sums, float* patch_sums) {
  const BilinearKernels& kernels = bilinear_kernels();
  // At least 32 channels, two cache lines, a piece; at most 256, so that two rows of nodes stay in the second-level
  // cache between one row of patches and the next.
  const int64_t pieces = (channels + 31) / 32;
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c0 = begin * 32; c0 < std::min(channels, end * 32); c0 += 256) {
      const int64_t c1 = std::min({channels, end * 32, c0 + 256});
      if constexpr (std::is_same_v<T, float>)
        kernels.scatter_f32(count, grid.nx, taps, weights, channels, c0, c1, values, node_sums, patch_sums);
      else
        kernels.scatter_f16(count, grid.nx, taps, weights, channels, c0, c1, values, node_sums, patch_sums);
    }
  });
}
template void scatter<float>(GridShape, int64_t, const Tap*, const float*, int64_t, const float*, float*, float*);
template void scatter<uint16_t>(GridShape, int64_t, const Tap*, const float*, int64_t, const uint16_t*, float*, float*);

template <class T>
void residual_energy(GridShape grid, int64_t count, const Tap* taps, int64_t channels, const T* values,
                     const float* nodes, const float* artifacts, float* out) {
  const BilinearKernels& kernels = bilinear_kernels();
  parallel_for(count, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
    const T* v = values + begin * channels;
    const float* a = artifacts + begin * channels;
    if constexpr (std::is_same_v<T, float>)
      kernels.residual_f32(end - begin, grid.nx, taps + begin, channels, v, nodes, a, out + begin);
    else
      kernels.residual_f16(end - begin, grid.nx, taps + begin, channels, v, nodes, a, out + begin);
  });
}
template void residual_energy<float>(GridShape, int64_t, const Tap*, int64_t, const float*, const float*, const float*,
                                     float*);
template void residual_energy<uint16_t>(GridShape, int64_t, const Tap*, int64_t, const uint16_t*, const float*,
                                        const float*, float*);

}  // namespace dvt

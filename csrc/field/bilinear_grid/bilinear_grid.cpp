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

namespace {

// Calls body(view, c0, c1) for every view and one run of channels a thread, of at least two cache lines: rows of
// features are read in long pieces, which counts for more here than keeping the sums in a nearer cache. Runs share
// nothing that is written.
template <class Body>
void for_runs(int64_t views, int64_t channels, const Body& body) {
  const int64_t runs = (channels + 31) / 32, threads = num_threads();
  parallel_for(runs, (runs + threads - 1) / threads, [&](int64_t begin, int64_t end) {
    for (int64_t v = 0; v < views; ++v) body(v, begin * 32, std::min(channels, end * 32));
  });
}

}  // namespace

template <class T>
void scatter(GridShape grid, int64_t views, int64_t count, const Tap* taps, const float* weights, int64_t channels,
             const T* const* values, float* node_sums, float* patch_sums) {
  const BilinearKernels& k = bilinear_kernels();
  for_runs(views, channels, [&](int64_t v, int64_t c0, int64_t c1) {
    const Tap* t = taps + v * count;
    const float* w = weights + v * count;
    if constexpr (std::is_same_v<T, float>)
      k.scatter_f32(count, grid.nx, t, w, channels, c0, c1, values[v], node_sums, patch_sums);
    else
      k.scatter_f16(count, grid.nx, t, w, channels, c0, c1, values[v], node_sums, patch_sums);
  });
}
template void scatter<float>(GridShape, int64_t, int64_t, const Tap*, const float*, int64_t, const float* const*,
                             float*, float*);
template void scatter<uint16_t>(GridShape, int64_t, int64_t, const Tap*, const float*, int64_t, const uint16_t* const*,
                                float*, float*);

template <class T>
void gain_sums(GridShape grid, int64_t views, int64_t count, const Tap* taps, const float* weights, int64_t channels,
               const T* const* values, const float* nodes, const float* centre, const float* artifacts, float* cross,
               float* square) {
  const BilinearKernels& k = bilinear_kernels();
  for_runs(views, channels, [&](int64_t v, int64_t c0, int64_t c1) {
    const auto kernel = [&] {
      if constexpr (std::is_same_v<T, float>)
        return k.gain_sums_f32;
      else
        return k.gain_sums_f16;
    }();
    kernel(count, grid.nx, taps + v * count, weights + v * count, channels, c0, c1, values[v], nodes, centre, artifacts,
           cross, square);
  });
}
template void gain_sums<float>(GridShape, int64_t, int64_t, const Tap*, const float*, int64_t, const float* const*,
                               const float*, const float*, const float*, float*, float*);
template void gain_sums<uint16_t>(GridShape, int64_t, int64_t, const Tap*, const float*, int64_t,
                                  const uint16_t* const*, const float*, const float*, const float*, float*, float*);

void scatter_gain(GridShape grid, int64_t views, int64_t count, const Tap* taps, const float* weights, int64_t channels,
                  const float* gain, const float* nodes, const float* centre, float* node_sums, float* patch_sums) {
  const auto kernel = bilinear_kernels().scatter_gain;
  for_runs(views, channels, [&](int64_t v, int64_t c0, int64_t c1) {
    kernel(count, grid.nx, taps + v * count, weights + v * count, channels, c0, c1, gain, nodes, centre, node_sums,
           patch_sums);
  });
}

void subtract_field(GridShape grid, int64_t views, int64_t count, const Tap* taps, const float* weights,
                    int64_t channels, const float* nodes, float* patch_sums) {
  const auto kernel = bilinear_kernels().subtract_field;
  for_runs(views, channels, [&](int64_t v, int64_t c0, int64_t c1) {
    kernel(count, grid.nx, taps + v * count, weights + v * count, channels, c0, c1, nodes, patch_sums);
  });
}

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

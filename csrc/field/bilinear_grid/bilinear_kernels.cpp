// Vector code of the bilinear grid: every loop runs along the channels, which are contiguous in all operands.
#include "core/simd.h"
#include "field/bilinear_grid/bilinear_grid.h"

namespace dvt {
namespace DVT_ISA {
namespace {

// Calls body(c, load, store) for whole vectors of channels and then once for the rest. The bodies are written once:
// `load` and `store` know whether they are whole.
struct Whole {
  template <class T>
  DVT_INLINE_MEMBER vfloat get(const T* p) const {
    return load(p);
  }
  DVT_INLINE_MEMBER void put(float* p, vfloat v) const { store(p, v); }
};
struct Part {
  int n;
  template <class T>
  DVT_INLINE_MEMBER vfloat get(const T* p) const {
    return load_partial(p, n);
  }
  DVT_INLINE_MEMBER void put(float* p, vfloat v) const { store_partial(p, v, n); }
};
template <class Body>
DVT_INLINE void for_channels(int64_t c0, int64_t c1, const Body& body) {
  int64_t c = c0;
  for (; c + kLanes <= c1; c += kLanes) body(c, Whole{});
  if (c < c1) body(c, Part{static_cast<int>(c1 - c)});
}

void interpolate(int64_t count, int64_t nx, const Tap* taps, int64_t channels, const float* nodes, float* out) {
  for (int64_t i = 0; i < count; ++i, out += channels) {
    const TapWeights t = tap_weights(taps[i]);
    const float* n0 = nodes + taps[i].node * channels;
    const float *n1 = n0 + channels, *n2 = n0 + nx * channels, *n3 = n2 + channels;
    for_channels(0, channels, [&](int64_t c, auto lanes) {
      lanes.put(out + c, lanes.get(n0 + c) * t.w[0] + lanes.get(n1 + c) * t.w[1] + lanes.get(n2 + c) * t.w[2] +
                             lanes.get(n3 + c) * t.w[3]);
    });
  }
}

template <class T>
DVT_INLINE void scatter(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                        int64_t c1, const T* values, float* node_sums, float* patch_sums) {
  for (int64_t i = 0; i < count; ++i, values += channels) {
    const TapWeights t = tap_weights(taps[i]);
    const float weight = weights[i];
    float* n0 = node_sums + taps[i].node * channels;
    float *n1 = n0 + channels, *n2 = n0 + nx * channels, *n3 = n2 + channels;
    float* patch = patch_sums ? patch_sums + i * channels : nullptr;
    for_channels(c0, c1, [&](int64_t c, auto lanes) {
      const vfloat v = lanes.get(values + c) * weight;
      lanes.put(n0 + c, lanes.get(n0 + c) + v * t.w[0]);
      lanes.put(n1 + c, lanes.get(n1 + c) + v * t.w[1]);
      lanes.put(n2 + c, lanes.get(n2 + c) + v * t.w[2]);
      lanes.put(n3 + c, lanes.get(n3 + c) + v * t.w[3]);
      if (patch) lanes.put(patch + c, lanes.get(patch + c) + v);
    });
  }
}

void scatter_f32(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                 int64_t c1, const float* values, float* node_sums, float* patch_sums) {
  scatter(count, nx, taps, weights, channels, c0, c1, values, node_sums, patch_sums);
}
void scatter_f16(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                 int64_t c1, const uint16_t* values, float* node_sums, float* patch_sums) {
  scatter(count, nx, taps, weights, channels, c0, c1, values, node_sums, patch_sums);
}

template <class T>
DVT_INLINE void residual(int64_t count, int64_t nx, const Tap* taps, int64_t channels, const T* values,
                         const float* nodes, const float* artifacts, float* out) {
  for (int64_t i = 0; i < count; ++i, values += channels, artifacts += channels) {
    const TapWeights t = tap_weights(taps[i]);
    const float* n0 = nodes + taps[i].node * channels;
    const float *n1 = n0 + channels, *n2 = n0 + nx * channels, *n3 = n2 + channels;
    vfloat energy = {};
    for_channels(0, channels, [&](int64_t c, auto lanes) {
      const vfloat e = lanes.get(values + c) - lanes.get(artifacts + c) - lanes.get(n0 + c) * t.w[0] -
                       lanes.get(n1 + c) * t.w[1] - lanes.get(n2 + c) * t.w[2] - lanes.get(n3 + c) * t.w[3];
      energy += e * e;
    });
    out[i] = sum(energy);
  }
}

void residual_f32(int64_t count, int64_t nx, const Tap* taps, int64_t channels, const float* values, const float* nodes,
                  const float* artifacts, float* out) {
  residual(count, nx, taps, channels, values, nodes, artifacts, out);
}
void residual_f16(int64_t count, int64_t nx, const Tap* taps, int64_t channels, const uint16_t* values,
                  const float* nodes, const float* artifacts, float* out) {
  residual(count, nx, taps, channels, values, nodes, artifacts, out);
}

template <class T>
DVT_INLINE void gain_sums(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels,
                          int64_t c0, int64_t c1, const T* values, const float* nodes, const float* centre,
                          const float* artifacts, float* cross, float* square) {
  for (int64_t i = 0; i < count; ++i) {
    const TapWeights t = tap_weights(taps[i]);
    const float* n0 = nodes + taps[i].node * channels;
    const float *n1 = n0 + channels, *n2 = n0 + nx * channels, *n3 = n2 + channels;
    const int64_t row = i * channels;
    for_channels(c0, c1, [&](int64_t c, auto lanes) {
      const vfloat field = lanes.get(n0 + c) * t.w[0] + lanes.get(n1 + c) * t.w[1] + lanes.get(n2 + c) * t.w[2] +
                           lanes.get(n3 + c) * t.w[3];
      const vfloat e = lanes.get(values + row + c) - field - lanes.get(artifacts + row + c);
      const vfloat f = field - lanes.get(centre + c), wf = f * weights[i];
      lanes.put(cross + row + c, lanes.get(cross + row + c) + wf * e);
      lanes.put(square + row + c, lanes.get(square + row + c) + wf * f);
    });
  }
}
void gain_sums_f32(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                   int64_t c1, const float* values, const float* nodes, const float* centre, const float* artifacts,
                   float* cross, float* square) {
  gain_sums(count, nx, taps, weights, channels, c0, c1, values, nodes, centre, artifacts, cross, square);
}
void gain_sums_f16(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                   int64_t c1, const uint16_t* values, const float* nodes, const float* centre, const float* artifacts,
                   float* cross, float* square) {
  gain_sums(count, nx, taps, weights, channels, c0, c1, values, nodes, centre, artifacts, cross, square);
}

void scatter_gain(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                  int64_t c1, const float* gain, const float* nodes, const float* centre, float* node_sums,
                  float* patch_sums) {
  for (int64_t i = 0; i < count; ++i) {
    const TapWeights t = tap_weights(taps[i]);
    const int64_t o0 = taps[i].node * channels, o1 = o0 + channels, o2 = o0 + nx * channels, o3 = o2 + channels;
    const int64_t row = i * channels;
    for_channels(c0, c1, [&](int64_t c, auto lanes) {
      const vfloat f = lanes.get(nodes + o0 + c) * t.w[0] + lanes.get(nodes + o1 + c) * t.w[1] +
                       lanes.get(nodes + o2 + c) * t.w[2] + lanes.get(nodes + o3 + c) * t.w[3] - lanes.get(centre + c);
      const vfloat v = lanes.get(gain + row + c) * f * -weights[i];
      lanes.put(node_sums + o0 + c, lanes.get(node_sums + o0 + c) + v * t.w[0]);
      lanes.put(node_sums + o1 + c, lanes.get(node_sums + o1 + c) + v * t.w[1]);
      lanes.put(node_sums + o2 + c, lanes.get(node_sums + o2 + c) + v * t.w[2]);
      lanes.put(node_sums + o3 + c, lanes.get(node_sums + o3 + c) + v * t.w[3]);
      lanes.put(patch_sums + row + c, lanes.get(patch_sums + row + c) + v);
    });
  }
}

void subtract_field(int64_t count, int64_t nx, const Tap* taps, const float* weights, int64_t channels, int64_t c0,
                    int64_t c1, const float* nodes, float* patch_sums) {
  for (int64_t i = 0; i < count; ++i, patch_sums += channels) {
    const TapWeights t = tap_weights(taps[i]);
    const float* n0 = nodes + taps[i].node * channels;
    const float *n1 = n0 + channels, *n2 = n0 + nx * channels, *n3 = n2 + channels;
    for_channels(c0, c1, [&](int64_t c, auto lanes) {
      const vfloat f = lanes.get(n0 + c) * t.w[0] + lanes.get(n1 + c) * t.w[1] + lanes.get(n2 + c) * t.w[2] +
                       lanes.get(n3 + c) * t.w[3];
      lanes.put(patch_sums + c, lanes.get(patch_sums + c) - f * weights[i]);
    });
  }
}

void energy(int64_t count, int64_t channels, const float* values, float* out) {
  for (int64_t i = 0; i < count; ++i, values += channels) {
    vfloat total = {};
    for_channels(0, channels, [&](int64_t c, auto lanes) {
      const vfloat v = lanes.get(values + c);
      total += v * v;
    });
    out[i] = sum(total);
  }
}

// x * 0 is 0 for a finite x and NaN otherwise, and NaN stays in a sum.
bool all_finite(int64_t count, const float* values) {
  vfloat poison[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int v = 0; v < 4; ++v) poison[v] += load(values + i + v * kLanes) * 0.0f;
  float rest = sum(poison[0] + poison[1] + poison[2] + poison[3]);
  for (; i < count; ++i) rest += values[i] * 0.0f;
  return rest == 0.0f;
}

float to_half(int64_t count, const float* from, uint16_t* to) {
  vfloat largest = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const vfloat x = load(from + i);
    store(to + i, x);
    largest = vmax(largest, vmax(x, -x));
  }
  float result = 0;
  for (int l = 0; l < kLanes; ++l) result = largest[l] > result ? largest[l] : result;
  for (; i < count; ++i) {
    to[i] = float_to_half(from[i]);
    const float magnitude = from[i] < 0 ? -from[i] : from[i];
    result = magnitude > result ? magnitude : result;
  }
  return result;
}

}  // namespace

const BilinearKernels bilinear_kernels = {interpolate,    scatter_f32,   scatter_f16,   residual_f32,
                                          residual_f16,   gain_sums_f32, gain_sums_f16, scatter_gain,
                                          subtract_field, all_finite,    to_half,       energy};

}  // namespace DVT_ISA
}  // namespace dvt

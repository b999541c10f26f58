// Conjugate gradients for one block of channels, two vectors wide. Every channel has its own step lengths; they share
// the matrix, which is never formed: a row gathers four nodes and a patch, and scatters them back.
#include "core/simd.h"
#include "field/direct_solver/direct_system.h"

namespace dvt {
namespace DVT_ISA {
namespace {

constexpr int kVectors = 2;
constexpr int kWidth = kVectors * kLanes;

struct Block {
  vfloat v[kVectors];
};
DVT_INLINE Block load_block(const float* p) { return {{load(p), load(p + kLanes)}}; }
DVT_INLINE void store_block(float* p, const Block& b) {
  store(p, b.v[0]);
  store(p + kLanes, b.v[1]);
}
DVT_INLINE void add_scaled(float* p, const Block& b, float s) {
  for (int v = 0; v < kVectors; ++v) store(p + v * kLanes, load(p + v * kLanes) + b.v[v] * s);
}

// q = (K, E; E^T, D + mu) p
void apply(const PcgProblem& s, const float* p, float* q) {
  const int64_t nx = s.grid.nx, ny = s.grid.ny, nodes = nx * ny;
  for (int64_t i = 0; i < ny; ++i)
    for (int64_t j = 0; j < nx; ++j) {
      const int64_t k = i * nx + j;
      const Block centre = load_block(p + k * kWidth);
      Block sum = {};
      for (int v = 0; v < kVectors; ++v) {
        const float* at = p + k * kWidth + v * kLanes;
        if (j > 0) sum.v[v] += centre.v[v] - load(at - kWidth);
        if (j + 1 < nx) sum.v[v] += centre.v[v] - load(at + kWidth);
        if (i > 0) sum.v[v] += centre.v[v] - load(at - nx * kWidth);
        if (i + 1 < ny) sum.v[v] += centre.v[v] - load(at + nx * kWidth);
        sum.v[v] *= s.lambda;
      }
      store_block(q + k * kWidth, sum);
    }
  for (int64_t i = 0; i < s.patches; ++i)
    for (int64_t k = (nodes + i) * kWidth; k < (nodes + i + 1) * kWidth; k += kLanes)
      store(q + k, load(p + k) * s.ridge[i]);
  const Tap* tap = s.taps;
  const float* weight = s.weights;
  for (int64_t view = 0; view < s.views; ++view)
    for (int64_t i = 0; i < s.patches; ++i, ++tap, ++weight) {
      const TapWeights t = tap_weights(*tap);
      const int64_t at = tap->node * kWidth, below = at + nx * kWidth, patch = (nodes + i) * kWidth;
      const float w = *weight;
      Block row;
      for (int v = 0; v < kVectors; ++v) {
        const int64_t o = v * kLanes;
        row.v[v] = (load(p + patch + o) + load(p + at + o) * t.w[0] + load(p + at + kWidth + o) * t.w[1] +
                    load(p + below + o) * t.w[2] + load(p + below + kWidth + o) * t.w[3]) *
                   w;
      }
      add_scaled(q + at, row, t.w[0]);
      add_scaled(q + at + kWidth, row, t.w[1]);
      add_scaled(q + below, row, t.w[2]);
      add_scaled(q + below + kWidth, row, t.w[3]);
      add_scaled(q + patch, row, 1.0f);
    }
}

DVT_INLINE Block safe_ratio(const Block& a, const Block& b) {
  Block r;
  for (int v = 0; v < kVectors; ++v) r.v[v] = b.v[v] > 0.0f ? a.v[v] / b.v[v] : vfloat{};
  return r;
}

int pcg(const PcgProblem& s, float tolerance, int max_iterations, float* x, float* r, float* p, float* q) {
  const int64_t unknowns = s.grid.nx * s.grid.ny + s.patches;
  const float* inverse = s.inverse_diagonal;
  Block rz = {}, target = {};
  for (int64_t k = 0; k < unknowns; ++k)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = k * kWidth + v * kLanes;
      const vfloat rk = load(r + at), z = rk * inverse[k];
      store(p + at, z);
      store(x + at, vfloat{});
      rz.v[v] += rk * z;
    }
  for (int v = 0; v < kVectors; ++v) target.v[v] = rz.v[v] * (tolerance * tolerance);
  for (int iteration = 1; iteration <= max_iterations; ++iteration) {
    apply(s, p, q);
    Block pq = {};
    for (int64_t k = 0; k < unknowns * kWidth; k += kWidth)
      for (int v = 0; v < kVectors; ++v) pq.v[v] += load(p + k + v * kLanes) * load(q + k + v * kLanes);
    const Block alpha = safe_ratio(rz, pq);
    Block next = {};
    for (int64_t k = 0; k < unknowns; ++k)
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = k * kWidth + v * kLanes;
        store(x + at, load(x + at) + alpha.v[v] * load(p + at));
        const vfloat rk = load(r + at) - alpha.v[v] * load(q + at);
        store(r + at, rk);
        next.v[v] += rk * rk * inverse[k];
      }
    // Measured in the norm of the preconditioner, which CG has at hand.
    bool done = true;
    for (int v = 0; v < kVectors; ++v)
      for (int l = 0; l < kLanes; ++l) done = done && next.v[v][l] <= target.v[v][l];
    if (done) return iteration;
    const Block beta = safe_ratio(next, rz);
    rz = next;
    for (int64_t k = 0; k < unknowns; ++k)
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = k * kWidth + v * kLanes;
        store(p + at, load(r + at) * inverse[k] + beta.v[v] * load(p + at));
      }
  }
  return max_iterations + 1;
}

}  // namespace

const DirectKernels direct_kernels = {kWidth, pcg};

}  // namespace DVT_ISA
}  // namespace dvt

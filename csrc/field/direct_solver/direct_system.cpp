#include "field/direct_solver/direct_system.h"

#include <algorithm>
#include <cstring>

#include "core/threads.h"
#include "linalg/banded/banded_cholesky.h"
#include "linalg/cholesky/cholesky.h"
#include "linalg/gemm/gemm.h"

namespace dvt {

void DirectSystem::assemble() {
  const int64_t n = grid.nodes(), nx = grid.nx, band = nx + 1, width = band + 1;
  band_rows.assign(static_cast<size_t>(n * width), 0.0);
  patch_weights.assign(static_cast<size_t>(patches), 0.0f);
  double* rows = band_rows.data();
  const Tap* tap = taps;
  const float* weight = weights;
  for (int64_t v = 0; v < views; ++v)
    for (int64_t i = 0; i < patches; ++i, ++tap, ++weight) {
      const TapWeights t = tap_weights(*tap);
      const float w = *weight;
      patch_weights[i] += w;
      const int64_t at[4] = {tap->node, tap->node + 1, tap->node + nx, tap->node + nx + 1};
      for (int a = 0; a < 4; ++a) {
        double* row = rows + at[a] * width + band;
        for (int b = 0; b <= a; ++b) row[at[b] - at[a]] += static_cast<double>(w) * t.w[a] * t.w[b];
      }
    }
  for (int64_t i = 0; i < grid.ny; ++i)
    for (int64_t j = 0; j < nx; ++j) {
      double* row = rows + (i * nx + j) * width + band;
      row[0] += lambda * ((i > 0) + (i + 1 < grid.ny) + (j > 0) + (j + 1 < nx));
      if (j > 0) row[-1] -= lambda;
      if (i > 0) row[-nx] -= lambda;
    }
}

bool DirectSystem::schur_is_cheaper() const {
  const double n = static_cast<double>(grid.nodes()), p = static_cast<double>(patches);
  const double c = static_cast<double>(channels), rows = static_cast<double>(views) * p;
  const double schur = n * p * (2.0 * static_cast<double>(grid.nx) + p + 4.0 * c) + p * p * (p / 3.0 + 2.0 * c);
  // About what PCG needs, and how much slower its gathers and scatters run than matrix products: rough, for a choice.
  const double iterations = 25, slowness = 4;
  return schur < iterations * slowness * c * (20.0 * rows + 30.0 * n);
}

Status DirectSystem::solve_schur(bool fixed, float* nodes, float* artifacts) const {
  const int64_t n = grid.nodes(), nx = grid.nx, c = channels, p = patches;
  BandedCholesky k;
  DVT_RETURN_IF_ERROR(k.factor(n, nx + 1, band_rows.data()));
  std::memcpy(nodes, nodes_rhs.data(), sizeof(float) * static_cast<size_t>(n * c));
  k.solve_forward(c, nodes, c);  // y = L^-1 r_F
  if (!fixed) {
    // Z = L^-1 E, [nodes, patches]. Threads take ranges of patches, so no two write to one entry.
    Buffer<float> z;
    z.zeroed(n * p);
    parallel_for(p, 16, [&](int64_t begin, int64_t end) {
      for (int64_t v = 0; v < views; ++v)
        for (int64_t i = begin; i < end; ++i) {
          const Tap& tap = taps[v * p + i];
          const TapWeights t = tap_weights(tap);
          const float w = weights[v * p + i];
          float* at = z.data() + tap.node * p + i;
          at[0] += w * t.w[0];
          at[p] += w * t.w[1];
          at[nx * p] += w * t.w[2];
          at[(nx + 1) * p] += w * t.w[3];
        }
    });
    k.solve_forward(p, z.data(), p);
    // S = D + mu - Z^T Z + shift u u^T. The last term pins the null direction, a constant, along which S is singular or
    // nearly so. It changes nothing else: S 1 = mu and 1^T r = 0, so the solution is orthogonal to mu, and u is mu
    // scaled to mean 1 (or all ones where mu is 0 and the constant is free).
    Buffer<float> s(p * p);
    double trace = 0, total_ridge = 0;
    for (int64_t i = 0; i < p; ++i) {
      trace += patch_weights[i] + ridge[i];
      total_ridge += ridge[i];
    }
    std::vector<float> u(static_cast<size_t>(p), 1.0f);
    if (total_ridge > 0)
      for (int64_t i = 0; i < p; ++i) u[i] = static_cast<float>(ridge[i] * static_cast<double>(p) / total_ridge);
    const float shift = static_cast<float>(trace / static_cast<double>(p * p));
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t j = 0; j <= i; ++j) s[i * p + j] = shift * u[i] * u[j];
      s[i * p + i] += patch_weights[i] + ridge[i];
    }
    constexpr int64_t kStrip = 384;  // column strips from the diagonal down: only the lower triangle is needed
    for (int64_t j = 0; j < p; j += kStrip)
      gemm(Transpose::yes, Transpose::no, {p - j, std::min(kStrip, p - j), n}, -1.0f, z.data() + j, p, z.data() + j, p,
           1.0f, s.data() + j * p + j, p);
    // r_G - Z^T y, then G, then y - Z G.
    std::memcpy(artifacts, patches_rhs.data(), sizeof(float) * static_cast<size_t>(p * c));
    gemm(Transpose::yes, Transpose::no, {p, c, n}, -1.0f, z.data(), p, nodes, c, 1.0f, artifacts, c);
    DVT_RETURN_IF_ERROR(cholesky_factor(p, s.data(), p));
    cholesky_solve(p, s.data(), p, c, artifacts, c);
    gemm(Transpose::no, Transpose::no, {n, c, p}, -1.0f, z.data(), p, artifacts, c, 1.0f, nodes, c);
  }
  k.solve_backward(c, nodes, c);
  return Status();
}

int DirectSystem::solve_pcg(double tolerance, int max_iterations, float* nodes, float* artifacts) const {
  const DirectKernels& kernels = direct_kernels();
  const int64_t n = grid.nodes(), unknowns = n + patches, width = kernels.pcg_width, band = grid.nx + 1;
  std::vector<float> inverse(static_cast<size_t>(unknowns));
  for (int64_t i = 0; i < n; ++i) inverse[i] = static_cast<float>(1.0 / band_rows[i * (band + 1) + band]);
  for (int64_t i = 0; i < patches; ++i) {
    const float diagonal = patch_weights[i] + ridge[i];
    inverse[n + i] = diagonal > 0 ? 1.0f / diagonal : 0.0f;
  }
  const PcgProblem problem{grid,    patches,        views,        taps,
                           weights, inverse.data(), ridge.data(), static_cast<float>(lambda)};
  const int64_t blocks = (channels + width - 1) / width;
  std::vector<int> iterations(static_cast<size_t>(blocks));
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    thread_local Buffer<float> buffer;
    float* x = buffer.at_least(4 * unknowns * width);
    float* r = x + unknowns * width;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t c0 = b * width;
      const size_t bytes = sizeof(float) * static_cast<size_t>(std::min(width, channels - c0));
      std::memset(r, 0, sizeof(float) * static_cast<size_t>(unknowns * width));
      for (int64_t i = 0; i < n; ++i) std::memcpy(r + i * width, nodes_rhs.data() + i * channels + c0, bytes);
      for (int64_t i = 0; i < patches; ++i)
        std::memcpy(r + (n + i) * width, patches_rhs.data() + i * channels + c0, bytes);
      iterations[b] = kernels.pcg(problem, static_cast<float>(tolerance), max_iterations, x, r, r + unknowns * width,
                                  r + 2 * unknowns * width);
      for (int64_t i = 0; i < n; ++i) std::memcpy(nodes + i * channels + c0, x + i * width, bytes);
      for (int64_t i = 0; i < patches; ++i) std::memcpy(artifacts + i * channels + c0, x + (n + i) * width, bytes);
    }
  });
  return *std::max_element(iterations.begin(), iterations.end());
}

}  // namespace dvt

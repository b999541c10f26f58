// The linear system of one pass of the direct solver (the equations are in direct_solver.h), and three ways to solve
// it:
//
//   * G known: one band Cholesky solve with K;
//   * `schur`: band Cholesky of K, then the dense Schur complement D + mu - E^T K^-1 E on G, all matrix products: its
//     cost does not depend on the number of views;
//   * `pcg`: conjugate gradients with a Jacobi preconditioner, matrix-free over the rows, a block of channels at a time
//     so that its vectors stay in cache: cheaper for few views or very many patches.
//
// The only null direction with mu = 0 is a constant moved between F and G.
#pragma once

#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/status.h"
#include "field/bilinear_grid/bilinear_grid.h"

namespace dvt {

struct DirectSystem {
  GridShape grid;
  int64_t patches, channels, views;
  const Tap* taps;                     // [views, patches]
  const float* weights;                // [views, patches]
  double lambda = 0;                   // of |grad F|^2
  std::vector<float> ridge{};          // [patches]: mu of each patch
  std::vector<double> band_rows{};     // [nodes, nx + 2]: K by rows of its lower triangle
  std::vector<float> patch_weights{};  // [patches]: D
  Buffer<float> nodes_rhs{};           // [nodes, channels]: r_F
  Buffer<float> patches_rhs{};         // [patches, channels]: r_G

  // K and D from the taps, the weights and lambda.
  void assemble();

  bool schur_is_cheaper() const;
  // nodes [nodes, channels] and artifacts [patches, channels] are written. fixed: artifacts are left as they are, and
  // the right-hand side is taken as it is.
  Status solve_schur(bool fixed, float* nodes, float* artifacts) const;
  // tolerance: relative residual of every channel. Returns the most iterations that a block of channels
  // took, or max_iterations + 1 if one did not get there.
  int solve_pcg(double tolerance, int max_iterations, float* nodes, float* artifacts) const;
};

// One channel block of the conjugate gradients; all arrays [nodes + patches, width], width = pcg_width().
struct PcgProblem {
  GridShape grid;
  int64_t patches, views;
  const Tap* taps;                // [views, patches]
  const float* weights;           // [views, patches]
  const float* inverse_diagonal;  // [nodes + patches]
  const float* ridge;             // [patches]: mu
  float lambda;
};
struct DirectKernels {
  int pcg_width;
  // Solves in x (started from zero); r holds the right-hand side and is destroyed; p, q are workspace. Returns the
  // number of iterations, max_iterations + 1 if they were not enough.
  int (*pcg)(const PcgProblem& problem, float tolerance, int max_iterations, float* x, float* r, float* p, float* q);
};
DVT_DECLARE_KERNELS(DirectKernels, direct_kernels)

}  // namespace dvt

// The matrix of one pass on the device, scaled, and its products with many vectors at once.
//
// With S = diag(K)^-1/2, d = (D + mu)^-1/2 and G eliminated, F solves, in f = S^-1 F,
//
//     (S K S - E' E'^T) f = S r_F - E' (d r_G),   E' = S E d,   G = d (d r_G - E'^T f)
//
// S K S has a unit diagonal and a stencil of eight neighbours, four numbers a node by symmetry. E' is dense, its
// entries are in [0, 1] (Cauchy-Schwarz), and it is kept as 1024 E'^T = high + low, two float16 numbers with 22 bits
// together: 2 * 2 * 1369 * 9984 bytes = 55 MB at full size.
//
// Its products run on the tensor cores in float16 with float32 sums, error-compensated: high high + high low + low
// high, which leaves 2^-22, against 2^-24 of float32. One is 20.8 GFLOP at full size (C = 768), twice that or three
// times with the compensation, less the blocks of 64 x 64 that are zero (a third for random crops, which cannot bring
// every patch to every place).
//
// Vectors are channel-major: [channels, nodes] and [channels, patches], so that a block owns channels (direct_cg.h) and
// both products read rows along what they sum over.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "field/direct_solver/direct_sweeps.h"

namespace dvt::cuda {

constexpr int64_t kProductTile = 128, kZeroBlock = 64;
constexpr float kEntryScale = 1024;

// Extents padded so that no product has an edge; what is beyond the true ones is zero.
struct PaddedSizes {
  int64_t nodes, patches, channels;
};
PaddedSizes padded_sizes(const SweepShape& shape);

// ------------------------------------------------------------------------------------------------------- stencil --

// Arrays over nodes with nx + 1 entries before the first and after the last that are zero: every neighbour can be read.
struct Stencil {
  GridShape grid;
  float* coefficients;  // [nodes, 4], padded: S K S towards the right, lower left, lower, and lower right neighbour
  uint16_t* rounded;    // the same in float16, for the preconditioner
  float* bound;         // [1]: no eigenvalue of S K S is larger
  float* scale;         // [nodes]: S
  int64_t pad() const { return grid.nx + 1; }
};
struct StencilSpace {
  double* moments;  // [cells, 10]
  double* rows;     // [nodes, 5]: diagonal and the four neighbours, unscaled
};
// From the rows' weights and lambda. bound, and the padding of the coefficients, are set here.
Status assemble_stencil(const SweepShape& shape, const RowPlaces& places, const RowList& list, const float* weights,
                        double lambda, const StencilSpace& space, const Stencil& stencil, cudaStream_t stream);

// patch_weights [patches] = D.
Status sum_patch_weights(const SweepShape& shape, const float* weights, float* patch_weights, cudaStream_t stream);
// inverse [patches] = (D + mu)^-1/2, zero where that is not positive.
Status invert_patch_weights(int64_t patches, const float* patch_weights, const float* ridge, float* inverse,
                            cudaStream_t stream);

// -------------------------------------------------------------------------------------------------------------- E --

struct Coupling {          // 1024 E'^T, [padded patches, padded nodes]
  int64_t nodes, patches;  // the padded extents
  uint16_t* high;
  uint16_t* low;
  uint32_t* occupied;  // [padded patches / 64, padded nodes / 64]: whether a block of 64 x 64 has entries
};
// patch_rows [rows]: numbers of the rows by patch and, within a patch, by cell. high and low are zero in the padding
// already.
Status build_coupling(const SweepShape& shape, const RowPlaces& places, const uint32_t* patch_rows,
                      const float* weights, const float* node_scale, const float* patch_scale, const Coupling& coupling,
                      cudaStream_t stream);

// t [padded channels, padded patches] = a E': a [padded channels, padded nodes] = high + low, or high where low is
// null. parts: [splits, padded channels, padded patches] of scratch.
struct ToPatches {
  Coupling coupling;
  int64_t channels;  // padded
  const uint16_t* high;
  const uint16_t* low;
  int splits;
  float* parts;
  float* t;
  uint16_t* t_high;  // t once more, as high + low; may be null
  uint16_t* t_low;
  const uint32_t* active;  // where this is zero, nothing is done; may be null
};
int product_splits(const Coupling& coupling, int64_t channels, int multiprocessors);
Status multiply_to_patches(const ToPatches& product, cudaStream_t stream);

// u [padded channels, padded nodes] = row_scale[channel] * (high + low) E'^T, of t [padded channels, padded patches].
struct ToNodes {
  Coupling coupling;
  int64_t channels;
  const uint16_t* high;
  const uint16_t* low;
  const float* row_scale;
  float* u;
  const uint32_t* active;
};
Status multiply_to_nodes(const ToNodes& product, cudaStream_t stream);

}  // namespace dvt::cuda

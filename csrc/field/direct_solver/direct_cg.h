// Conjugate gradients for F with G eliminated (direct_matrix.h), all channels at once, each with its own step lengths.
//
// A block owns one or two channels and all of their nodes: dot products need no other block, and the preconditioner, a
// Chebyshev polynomial of degree 6 in the stencil S K S, is applied without leaving shared memory. K alone converges by
// a factor of 10 an application. What is left is the share of the fields that F and G could both explain: next to none,
// but for a constant (with random crops 1 - sigma^2 of the coupling is 5e-5 for it, and 0.4 for the next). So 10 to 13
// iterations give 1e-5 where Jacobi on F and G needs 27 to 42, and 3 to 5 do from the last pass's F.
//
// An iteration is three kernels: t = E'^T p, u = E' t, and `cg_step` with everything else. Directions p are rounded to
// float16, scaled a channel each: x and the residual then move along what was rounded, so nothing is lost but a trace
// of conjugacy, and the first product needs two terms instead of three.
//
// A step reads p, u, x, r and writes x, r, p, 0.2 GB at full size; the preconditioner's reads of r and of the stencil
// come from L2, 0.4 GB.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "field/direct_solver/direct_matrix.h"

namespace dvt::cuda {

struct CgState {        // on the device
  uint32_t active;      // channels that have not reached the tolerance
  uint32_t iterations;  // the most that a channel took
};

// [padded channels, stride] each, stride the padded nodes. Zero in the padding of channels and nodes.
struct CgVectors {
  Stencil stencil;
  int64_t channels;  // padded
  int64_t stride;
  float* x;        // f = S^-1 F; at the start the guess
  float* r;        // the right-hand side, then the residual
  const float* u;  // E' E'^T p; null where G is known
  uint16_t* p;     // direction in float16
  float* p_scale;  // [channels]: p is this times what is stored
  float* rz;       // [channels]
  float* target;   // [channels]: of rz
  uint32_t* done;  // [channels]
  CgState* state;
  float* scratch;  // [channels, 2, nodes + 2 pads], for grids that do not fit shared memory; may be null
};

// Bytes of `scratch` that this device needs for the grid.
Status cg_scratch_bytes(GridShape grid, int64_t channels, size_t* bytes);

// Sets up everything but u. from_guess: the first direction is x, taken as a whole step; else x starts from zero.
Status cg_start(const CgVectors& vectors, bool from_guess, float tolerance, cudaStream_t stream);
// One iteration, once u is that of p; number counts from 1. whole_step: the first of from_guess.
Status cg_step(const CgVectors& vectors, bool whole_step, int number, cudaStream_t stream);

// What goes in and out, [rows, channels] to channel-major [padded channels, stride] and back:
//   out[c][i] = scale[i] * in[i][c] - (subtract ? subtract[c][i] : 0)
Status to_channels(int64_t rows, int64_t channels, int64_t stride, const float* in, const float* scale,
                   bool invert_scale, const float* subtract, float* out, cudaStream_t stream);
//   out[i][c] = scale[i] * channel_scale[c] * in[c][i], either scale may be null
Status from_channels(int64_t rows, int64_t channels, int64_t stride, const float* in, const float* scale,
                     const float* channel_scale, float* out, cudaStream_t stream);
// high + low = in / scale[channel], float16 numbers of at most 32; scale is a power of two. Padding is taken as well.
Status split_channels(int64_t channels, int64_t stride, const float* in, uint16_t* high, uint16_t* low, float* scale,
                      cudaStream_t stream);

}  // namespace dvt::cuda

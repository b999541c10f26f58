// y = x W^T + b for a handful to some thousand rows, with weights that were packed once.
//
// W is kept in panels of `nr` output channels, each [in][nr] and contiguous, so that the inner loop loads two vectors
// of weights and one number of each row of x. Rows of x are read where they lie: nothing of the input is packed
// (compare Goto and van de Geijn, 2008, where both are). All buffers have rows of at least `padded(out)` floats, so
// that there are no edges in the output's columns: what is beyond `out` comes out as activation(0 + y), zero for every
// activation.
//
// What stands before or after a product and is linear is packed into it: a norm's weight and bias, LayerScale, and the
// scale of the queries.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/slabs.h"
#include "core/tensor.h"
#include "engine/weights.h"

namespace dvt {

struct LinearKernels;

struct PackedLinear {
  int64_t in = 0, out = 0;
  Dtype dtype = Dtype::float32;
  int64_t nr = 0;
  const LinearKernels* kernels = nullptr;  // of the instruction set that the panels were made for
  const float* panels = nullptr;           // [panel][in][nr]; of 16-bit types half as many floats
  const float* bias = nullptr;             // [panel][nr], zeros where there is none

  int64_t panel_count() const { return (out + nr - 1) / nr; }
  bool empty() const { return out == 0; }
};

// before: a norm whose weight and bias belong to this product's input, or null. row_scale: [out], or empty, multiplies
// weights and bias. dtype: what the panels hold; sums are float32 whatever it is. memory: where they are kept.
PackedLinear pack_linear(const LinearWeights& weights, Dtype dtype, Slabs& memory, const NormWeights* before = nullptr,
                         const std::vector<float>& row_scale = {});

struct LinearCall {
  const PackedLinear* weights = nullptr;
  int64_t panel_begin = 0, panel_end = 0;  // which output channels
  int64_t k_begin = 0, k_end = 0;          // which input channels; x and y point to the first of each
  int64_t rows = 0;
  const float* x = nullptr;
  int64_t x_stride = 0;  // floats from row to row
  float* y = nullptr;
  int64_t y_stride = 0;
  bool add_bias = true;
  bool accumulate = false;  // y += instead of y =
  bool activate = false;    // y = activation(y), last of all
  Activation activation = Activation::gelu;
};

// All of it.
inline LinearCall whole(const PackedLinear& weights, int64_t rows, const float* x, int64_t x_stride, float* y,
                        int64_t y_stride) {
  LinearCall call;
  call.weights = &weights;
  call.panel_end = weights.panel_count();
  call.k_end = weights.in;
  call.rows = rows;
  call.x = x;
  call.x_stride = x_stride;
  call.y = y;
  call.y_stride = y_stride;
  return call;
}

// On the calling thread. Every element is summed in the order of the input channels, whatever the number of rows.
void linear(const LinearCall& call);

// y [rows, out] of x [rows, in] in double, for tests.
void linear_reference(const LinearWeights& weights, int64_t rows, const float* x, double* y);

struct LinearKernels {
  const char* isa;
  int mr, nr;
  void (*run)(const LinearCall& call);
};
DVT_DECLARE_KERNELS(LinearKernels, linear_kernels)

// A row stride for n floats: whole panels of every instruction set, and never a multiple of what makes rows fall into
// the same set of a cache.
constexpr int64_t row_stride(int64_t n) {
  const int64_t whole_panels = (n + 31) / 32 * 32;
  return whole_panels % 128 == 0 ? whole_panels + 16 : whole_panels;
}

}  // namespace dvt

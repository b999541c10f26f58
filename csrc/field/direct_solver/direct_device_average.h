// solver="average" on the device: sums at the nodes divided by their coverage.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "field/bilinear_grid/bilinear_grid.h"

namespace dvt::cuda {

// nodes [grid, channels] /= coverage, where that is more than 1e-6; the others take the mean of their known neighbours,
// from the rim of a hole inwards. rows [nodes, 5]: the stencil of K without weights and with lambda 1. scratch: 3
// numbers a node. Waits for the stream once for every ring of nodes that holes have.
Status divide_by_coverage(GridShape grid, int64_t channels, const double* rows, float* nodes, float* scratch,
                          cudaStream_t stream);

}  // namespace dvt::cuda

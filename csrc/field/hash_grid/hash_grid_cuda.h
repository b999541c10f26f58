// The hash grid on the device, for any configuration; hash_grid.h says what it computes. All pointers are device
// memory, all but coords and d_coords aligned to 16 bytes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "field/hash_grid/hash_grid.h"

namespace dvt::cuda {

// coords [N, D], params [entries, F] -> out [N, L * F].
Status hash_grid_forward(const HashGrid& grid, const float* coords, const float* params, int64_t n, float* out,
                         cudaStream_t stream);

// d_params [entries, F] from d_out [N, L * F]; overwritten. With a workspace of hash_grid_workspace bytes the sums are
// taken in fixed point and are the same bits in every run; without (null) by float atomics, which is faster.
Status hash_grid_backward_params(const HashGrid& grid, const float* coords, const float* d_out, int64_t n,
                                 float* d_params, void* workspace, cudaStream_t stream);
int64_t hash_grid_workspace(const HashGrid& grid);

// d_coords [N, D].
Status hash_grid_backward_coords(const HashGrid& grid, const float* coords, const float* params, const float* d_out,
                                 int64_t n, float* d_coords, cudaStream_t stream);

}  // namespace dvt::cuda

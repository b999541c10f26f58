// The matrix of a pass from its rows: the stencil K, the weights D, the coupling E; the contract is in direct_matrix.h.
//
// Sums are in float64 for K, as on the CPU, and in an order that does not depend on how blocks run. The rows are few
// bytes each: 20 MB a matrix at full size. Writing the coupling is 55 MB.
#include "field/bilinear_grid/bilinear_device.cuh"
#include "field/direct_solver/direct_matrix.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kPairs = 10;  // of the four nodes of a cell: (0,0) (0,1) (0,2) (0,3) (1,1) (1,2) (1,3) (2,2) (2,3) (3,3)
constexpr int64_t kColumn = 12 * 1024;  // nodes of a column of E in shared memory at a time: 48 KB
constexpr double kLargestBound = 4;     // of a row's t t^T against the diagonal of t^2; the Laplacian's is 2

__global__ void cell_moments_kernel(SweepShape shape, RowPlaces places, RowList list, const float* weights,
                                    double* moments) {
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (cell >= cells_of(shape.grid)) return;
  const int lane = threadIdx.x % 32;
  double sum[kPairs] = {};
  for (uint32_t i = list.cell_start[cell] + lane; i < list.cell_start[cell + 1]; i += 32) {
    const uint32_t row = list.row[i];
    float t[4];
    tap_weights_at(places.at[row], t);
    const double w = weights[row];
    int pair = 0;
    for (int a = 0; a < 4; ++a)
      for (int b = a; b < 4; ++b) sum[pair++] += w * t[a] * t[b];
  }
  for (int pair = 0; pair < kPairs; ++pair) {
    const double total = warp_sum(sum[pair]);
    if (lane == 0) moments[cell * kPairs + pair] = total;
  }
}

__global__ void stencil_rows_kernel(GridShape grid, const double* moments, double lambda, double* rows) {
  const int64_t node = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (node >= nodes_of(grid)) return;
  const int64_t i = node / grid.nx, j = node % grid.nx;
  const bool up = i > 0, down = i + 1 < grid.ny, left = j > 0, right = j + 1 < grid.nx;
  const auto of = [&](int64_t row, int64_t column, int pair) {
    return moments[(row * (grid.nx - 1) + column) * kPairs + pair];
  };
  double* out = rows + node * 5;
  double diagonal = lambda * (up + down + left + right);
  if (up && left) diagonal += of(i - 1, j - 1, 9);
  if (up && right) diagonal += of(i - 1, j, 7);
  if (down && left) diagonal += of(i, j - 1, 4);
  if (down && right) diagonal += of(i, j, 0);
  out[0] = diagonal;
  out[1] = right ? (up ? of(i - 1, j, 8) : 0) + (down ? of(i, j, 1) : 0) - lambda : 0;
  out[2] = down && left ? of(i, j - 1, 5) : 0;
  out[3] = down ? (left ? of(i, j - 1, 6) : 0) + (right ? of(i, j, 2) : 0) - lambda : 0;
  out[4] = down && right ? of(i, j, 3) : 0;
}

// Gershgorin's bound of the eigenvalues of diag(K)^-1 K, which are those of S K S.
__global__ void scale_stencil_kernel(Stencil s, const double* rows) {
  const int64_t pad = s.grid.nx + 1, padded = nodes_of(s.grid) + 2 * pad;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, node = at - pad;
  float bound = 0;
  if (at < padded) {
    float* out = s.coefficients + at * 4;
    uint16_t* rounded = s.rounded + at * 4;
    const int64_t nx = s.grid.nx;
    const bool inside = node >= 0 && node < nodes_of(s.grid);
    const double scale = inside ? 1.0 / sqrt(rows[node * 5]) : 0;
    const int64_t step[4] = {1, nx - 1, nx, nx + 1};
    double sum = inside ? rows[node * 5] : 0;
    for (int k = 0; k < 4; ++k) {
      float value = 0;
      if (inside) {
        const double forward = rows[node * 5 + 1 + k];
        if (forward != 0) value = static_cast<float>(forward * scale / sqrt(rows[(node + step[k]) * 5]));
        sum += fabs(forward);
        if (node >= step[k]) sum += fabs(rows[(node - step[k]) * 5 + 1 + k]);
      }
      out[k] = value;
      rounded[k] = from_float<f16>(value).bits;
    }
    if (inside) {
      s.scale[node] = static_cast<float>(scale);
      bound = static_cast<float>(fmin(kLargestBound, sum / rows[node * 5]));
    }
  }
  for (int step = 16; step > 0; step /= 2) bound = fmaxf(bound, __shfl_xor_sync(0xffffffffu, bound, step));
  // Bits of floats that are not negative are in the order of the floats.
  if (threadIdx.x % 32 == 0) atomicMax(reinterpret_cast<uint32_t*>(s.bound), __float_as_uint(bound));
}

__global__ void patch_weights_kernel(SweepShape shape, const float* weights, float* patch_weights) {
  float* scratch = &ptx::shared<float>();
  float sum[1] = {0};
  for (int64_t view = threadIdx.x; view < shape.views; view += blockDim.x)
    sum[0] += weights[view * shape.patches + blockIdx.x];
  block_sum(sum, scratch);
  if (threadIdx.x == 0) patch_weights[blockIdx.x] = sum[0];
}

__global__ void invert_patch_weights_kernel(int64_t patches, const float* patch_weights, const float* ridge,
                                            float* inverse) {
  const int64_t patch = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (patch >= patches) return;
  const float diagonal = patch_weights[patch] + ridge[patch];
  inverse[patch] = diagonal > 0 ? 1.0f / __fsqrt_rn(diagonal) : 0.0f;
}

// A block makes one column of E, `kColumn` nodes of it: the rows of its patch, which lie by cells, are summed a cell at
// a time, and one of the four nodes of the cells after the other, so that no two threads write to one node at once.
__global__ void __launch_bounds__(kThreads)
    build_coupling_kernel(SweepShape shape, RowPlaces places, const uint32_t* patch_rows, const float* weights,
                          const float* node_scale, const float* patch_scale, Coupling e) {
  float* column = &ptx::shared<float>();
  const int64_t patch = blockIdx.x, first = blockIdx.y * kColumn, nodes = nodes_of(shape.grid);
  const int64_t count = min(kColumn, nodes - first);
  for (int64_t n = threadIdx.x; n < count; n += blockDim.x) column[n] = 0;
  __syncthreads();
  const uint32_t* rows = patch_rows + patch * shape.views;
  for (int k = 0; k < 4; ++k) {
    for (int64_t i = threadIdx.x; i < shape.views; i += blockDim.x) {
      const uint32_t cell = places.cell[rows[i]];
      if (i > 0 && places.cell[rows[i - 1]] == cell) continue;
      const int64_t node = node_of_cell(shape.grid, cell) + (k & 1) + (k >> 1) * shape.grid.nx - first;
      if (node < 0 || node >= count) continue;
      float sum = column[node];
      for (int64_t run = i; run < shape.views && places.cell[rows[run]] == cell; ++run) {
        float t[4];
        tap_weights_at(places.at[rows[run]], t);
        sum += weights[rows[run]] * t[k];
      }
      column[node] = sum;
    }
    __syncthreads();
  }
  const float scale = patch_scale[patch] * kEntryScale;
  f16* high = reinterpret_cast<f16*>(e.high) + patch * e.nodes + first;
  f16* low = reinterpret_cast<f16*>(e.low) + patch * e.nodes + first;
  uint32_t* occupied = e.occupied + patch / kZeroBlock * (e.nodes / kZeroBlock);
  for (int64_t n = threadIdx.x; n < count; n += blockDim.x) {
    const float value = column[n] * scale * node_scale[first + n];
    high[n] = from_float<f16>(value);
    low[n] = from_float<f16>(value - to_float(high[n]));
    if (value != 0.0f) atomicOr(occupied + (first + n) / kZeroBlock, 1u);
  }
}

dim3 blocks_for(int64_t count) { return dim3(static_cast<unsigned>(ceil_div(count, kThreads))); }

}  // namespace

PaddedSizes padded_sizes(const SweepShape& shape) {
  return {round_up(shape.grid.nodes(), kProductTile), round_up(shape.patches, kProductTile),
          round_up(shape.channels, kProductTile)};
}

Status assemble_stencil(const SweepShape& shape, const RowPlaces& places, const RowList& list, const float* weights,
                        double lambda, const StencilSpace& space, const Stencil& stencil, cudaStream_t stream) {
  DVT_RETURN_IF_ERROR(launch("moments of cells", cell_moments_kernel,
                             {dim3(static_cast<unsigned>(ceil_div(shape.cells(), kWarps))), kThreads, 0, stream}, shape,
                             places, list, weights, space.moments));
  DVT_RETURN_IF_ERROR(launch("rows of the stencil", stencil_rows_kernel,
                             {blocks_for(shape.grid.nodes()), kThreads, 0, stream}, shape.grid, space.moments, lambda,
                             space.rows));
  DVT_CUDA(cudaMemsetAsync(stencil.bound, 0, sizeof(float), stream), "clearing the bound of the stencil");
  return launch("scaling of the stencil", scale_stencil_kernel,
                {blocks_for(shape.grid.nodes() + 2 * stencil.pad()), kThreads, 0, stream}, stencil, space.rows);
}

Status sum_patch_weights(const SweepShape& shape, const float* weights, float* patch_weights, cudaStream_t stream) {
  return launch("weights of patches", patch_weights_kernel,
                {dim3(static_cast<unsigned>(shape.patches)), 128, 33 * sizeof(float), stream}, shape, weights,
                patch_weights);
}

Status invert_patch_weights(int64_t patches, const float* patch_weights, const float* ridge, float* inverse,
                            cudaStream_t stream) {
  return launch("inverse weights of patches", invert_patch_weights_kernel, {blocks_for(patches), kThreads, 0, stream},
                patches, patch_weights, ridge, inverse);
}

Status build_coupling(const SweepShape& shape, const RowPlaces& places, const uint32_t* patch_rows,
                      const float* weights, const float* node_scale, const float* patch_scale, const Coupling& coupling,
                      cudaStream_t stream) {
  const int64_t nodes = shape.grid.nodes();
  DVT_CUDA(cudaMemsetAsync(coupling.occupied, 0,
                           sizeof(uint32_t) * static_cast<size_t>(coupling.patches / kZeroBlock) *
                               static_cast<size_t>(coupling.nodes / kZeroBlock),
                           stream),
           "clearing the blocks of the coupling");
  const dim3 grid(static_cast<unsigned>(shape.patches), static_cast<unsigned>(ceil_div(nodes, kColumn)));
  const size_t bytes = sizeof(float) * static_cast<size_t>(std::min(nodes, kColumn));
  return launch("columns of the coupling", build_coupling_kernel, {grid, kThreads, bytes, stream}, shape, places,
                patch_rows, weights, node_scale, patch_scale, coupling);
}

}  // namespace dvt::cuda

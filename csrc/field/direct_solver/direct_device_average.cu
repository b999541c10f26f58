#include "field/direct_solver/direct_device_average.h"

#include <utility>

#include "field/bilinear_grid/bilinear_device.cuh"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr double kCovered = 1e-6;

// Taps add up to one, so a node's coverage, the sum of its taps, is the sum of its row of A^T A; the rows of the
// Laplacian add up to zero.
__global__ void coverage_kernel(GridShape grid, const double* rows, float* coverage, uint32_t* known) {
  const int64_t node = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (node >= nodes_of(grid)) return;
  const int64_t step[4] = {1, grid.nx - 1, grid.nx, grid.nx + 1};
  double sum = 0;
  for (int k = 0; k < 5; ++k) sum += rows[node * 5 + k];
  for (int k = 0; k < 4; ++k)
    if (node >= step[k]) sum += rows[(node - step[k]) * 5 + 1 + k];
  // What rounding leaves of a node that no row reached is far below, and the lightest tap that counts far above.
  coverage[node] = static_cast<float>(sum);
  known[node] = sum > kCovered;
}

__global__ void divide_kernel(int64_t channels, const float* coverage, const uint32_t* known, float* nodes) {
  const int64_t node = blockIdx.x, c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  float& value = nodes[node * channels + c];
  value = known[node] ? value / coverage[node] : 0.0f;
}

__global__ void count_unknown_kernel(int64_t count, const uint32_t* known, uint32_t* unknown) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count && !known[i]) atomicAdd(unknown, 1u);
}

__global__ void fill_ring_kernel(GridShape grid, int64_t channels, const uint32_t* known, uint32_t* known_after,
                                 float* nodes) {
  const int64_t node = blockIdx.x, c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  const int64_t i = node / grid.nx, j = node % grid.nx;
  if (known[node]) {
    if (c == 0) known_after[node] = 1;
    return;
  }
  int neighbours = 0;
  float total = 0;
  const auto take = [&](bool inside, int64_t at) {
    if (!inside || !known[at]) return;
    ++neighbours;
    if (c < channels) total += nodes[at * channels + c];
  };
  take(i > 0, node - grid.nx);
  take(i + 1 < grid.ny, node + grid.nx);
  take(j > 0, node - 1);
  take(j + 1 < grid.nx, node + 1);
  if (c < channels && neighbours) nodes[node * channels + c] = total / static_cast<float>(neighbours);
  if (c == 0) known_after[node] = neighbours > 0;
}

}  // namespace

Status divide_by_coverage(GridShape grid, int64_t channels, const double* rows, float* nodes, float* scratch,
                          cudaStream_t stream) {
  const int64_t n = grid.nodes();
  const dim3 flat(static_cast<unsigned>(ceil_div(n, kThreads)));
  const dim3 values(static_cast<unsigned>(n), static_cast<unsigned>(ceil_div(channels, kThreads)));
  uint32_t* known = reinterpret_cast<uint32_t*>(scratch + n);
  uint32_t* after = known + n;
  uint32_t* count = reinterpret_cast<uint32_t*>(scratch);  // the coverage, once divided by, is not needed again
  DVT_RETURN_IF_ERROR(launch("coverage", coverage_kernel, {flat, kThreads, 0, stream}, grid, rows, scratch, known));
  DVT_RETURN_IF_ERROR(
      launch("division by coverage", divide_kernel, {values, kThreads, 0, stream}, channels, scratch, known, nodes));
  for (uint32_t before = 0;;) {
    uint32_t unknown = 0;
    DVT_CUDA(cudaMemsetAsync(count, 0, sizeof(uint32_t), stream), "counting holes");
    DVT_RETURN_IF_ERROR(launch("count of holes", count_unknown_kernel, {flat, kThreads, 0, stream}, n, known, count));
    DVT_CUDA(cudaMemcpyAsync(&unknown, count, sizeof(unknown), cudaMemcpyDeviceToHost, stream), "counting holes");
    DVT_CUDA(cudaStreamSynchronize(stream), "counting holes");
    if (unknown == 0 || unknown == before) return Status();
    before = unknown;
    DVT_RETURN_IF_ERROR(
        launch("holes", fill_ring_kernel, {values, kThreads, 0, stream}, grid, channels, known, after, nodes));
    std::swap(known, after);
  }
}

}  // namespace dvt::cuda

#include "field/direct_solver/direct_statistics.h"

#include "field/bilinear_grid/bilinear_device.cuh"
#include "field/direct_solver/direct_dispatch.h"
#include "field/direct_solver/direct_select.cuh"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kSelectThreads = 1024;
constexpr float kLargestHalf = 65504.0f;
constexpr float kLargestCosineWeight = 1e3f;

__global__ void select_kernel(int64_t count, int64_t stride, int64_t step, const float* in, int64_t rank, float* out) {
  const float* column = in + blockIdx.x * stride;
  const float found =
      block_select(count, rank, [&](int64_t i) { return column[i * step]; }, ptx::shared<SelectShared>());
  if (threadIdx.x == 0) out[blockIdx.x] = found;
}

__global__ void set_limit_kernel(double threshold, DirectScalars* scalars) {
  scalars->limit = static_cast<float>(fmax(threshold * sqrt(static_cast<double>(scalars->median_energy)), 1e-30));
}

__global__ void compare_weights_kernel(int64_t rows, const float* base, const float* before, const float* weights,
                                       double* parts) {
  double* scratch = &ptx::shared<double>();
  double sum[3] = {};
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    sum[0] += fabsf(weights[i] - before[i]);
    sum[1] += before[i];
    sum[2] += base[i] > 2 * weights[i] ? 1 : 0;
  }
  block_sum(sum, scratch);
  if (threadIdx.x == 0)
    for (int k = 0; k < 3; ++k) parts[blockIdx.x * 3 + k] = sum[k];
}

__global__ void add_weight_parts_kernel(const double* parts, DirectScalars* scalars) {
  double* scratch = &ptx::shared<double>();
  double sum[3];
  for (int k = 0; k < 3; ++k) sum[k] = parts[threadIdx.x * 3 + k];
  block_sum(sum, scratch);
  if (threadIdx.x == 0) scalars->moved = sum[0], scalars->total = sum[1], scalars->outliers = sum[2];
}

__global__ void steps_kernel(GridShape grid, int64_t channels, const float* nodes, float* steps) {
  const int64_t node = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (node >= nodes_of(grid)) return;
  const int lane = threadIdx.x % 32;
  const int64_t i = node / grid.nx, j = node % grid.nx;
  const bool right = j + 1 < grid.nx, down = i + 1 < grid.ny, whole = channels % 4 == 0;
  const float* mine = nodes + node * channels;
  float to_right = 0, to_lower = 0;
  for (int64_t c = 4 * lane; c < channels; c += 128) {
    const float4 v = load4(mine, c, channels, whole);
    if (right) to_right += square4(subtract4(v, load4(mine + channels, c, channels, whole)));
    if (down) to_lower += square4(subtract4(v, load4(mine + grid.nx * channels, c, channels, whole)));
  }
  to_right = warp_sum(to_right);
  to_lower = warp_sum(to_lower);
  if (lane != 0) return;
  if (right) steps[i * (grid.nx - 1) + j] = to_right;
  if (down) steps[grid.ny * (grid.nx - 1) + node] = to_lower;
}

// The mean of the smallest `counted`: those below the last of them, and as many of its equals as are left.
__global__ void mean_of_smallest_kernel(int64_t count, int64_t counted, const float* values, DirectScalars* scalars) {
  SelectShared& shared = ptx::shared<SelectShared>();
  const float last = block_select(count, counted - 1, [&](int64_t i) { return values[i]; }, shared);
  double sum[2] = {};
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
    if (values[i] < last) sum[0] += values[i], sum[1] += 1;
  block_sum(sum, shared.sums);
  if (threadIdx.x == 0)
    scalars->mean_step =
        (sum[0] + (static_cast<double>(counted) - sum[1]) * static_cast<double>(last)) / static_cast<double>(counted);
}

__global__ void cosine_weights_kernel(int64_t rows, float half_channels, const float* energy, float* base) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < rows) base[i] = 1.0f + fminf(kLargestCosineWeight, half_channels / energy[i]);
}

__global__ void outlier_weights_kernel(int64_t rows, int64_t patches, const float* base, const float* energy,
                                       const float* typical, const float* limit, float* weights) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows) return;
  const float excess = fmaxf(1.0f, __fsqrt_rn(fmaxf(energy[i], typical[i % patches])) / *limit);
  weights[i] = base[i] / (excess * excess);
}

__global__ void deviation_energy_kernel(int64_t patches, int64_t channels, const float* values, const float* centre,
                                        float* energy) {
  const int64_t patch = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (patch >= patches) return;
  const int lane = threadIdx.x % 32;
  const bool whole = channels % 4 == 0;
  float sum = 0;
  for (int64_t c = 4 * lane; c < channels; c += 128)
    sum += square4(subtract4(load4(values + patch * channels, c, channels, whole), load4(centre, c, channels, whole)));
  sum = warp_sum(sum);
  if (lane == 0) energy[patch] = sum;
}

__global__ void outlying_ridge_kernel(int64_t patches, float mu, float limit, const float* energy, float* ridge) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < patches) ridge[i] = mu / fmaxf(1.0f, energy[i] / limit);
}

// A block takes 32 channels; eight warps share the nodes.
__global__ void node_statistics_kernel(int64_t nodes, int64_t channels, const float* values, double factor,
                                       float* centre, float* pull) {
  double* parts = &ptx::shared<double>();  // [kWarps][32]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  const auto total = [&](double mine) {
    parts[warp * 32 + lane] = mine;
    __syncthreads();
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += parts[w * 32 + lane];
    __syncthreads();
    return sum;
  };
  double sum = 0;
  if (c < channels)
    for (int64_t n = warp; n < nodes; n += kWarps) sum += values[n * channels + c];
  const float mean = static_cast<float>(total(sum) / static_cast<double>(nodes));
  double squares = 0;
  if (c < channels)
    for (int64_t n = warp; n < nodes; n += kWarps) {
      const double d = values[n * channels + c] - mean;
      squares += d * d;
    }
  squares = total(squares);
  if (warp == 0 && c < channels) {
    centre[c] = mean;
    pull[c] = static_cast<float>(factor * squares / static_cast<double>(nodes) + 1e-30);
  }
}

// x * 0 is 0 for a finite x and NaN otherwise.
DVT_DEVICE bool is_finite(float x) { return x * 0.0f == 0.0f; }

__global__ void find_non_finite_kernel(int64_t count, const float* values, uint32_t* flag) {
  bool bad = false;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    bad = bad || !is_finite(values[i]);
  if (bad) atomicOr(flag, 1u);
}

template <class T>
__global__ void inspect_views_kernel(int64_t size, const T* features, f16* copy, uint32_t* bad) {
  const int64_t at = blockIdx.y * size;
  bool broken = false, large = false;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float x = to_float(features[at + i]);
    broken = broken || !is_finite(x);
    large = large || fabsf(x) > kLargestHalf;
    if (copy) copy[at + i] = from_float<f16>(x);
  }
  if (broken) atomicMin(bad, static_cast<uint32_t>(blockIdx.y));
  if (large) atomicMin(bad + 1, static_cast<uint32_t>(blockIdx.y));
}

dim3 blocks_for(int64_t count) { return dim3(static_cast<unsigned>(ceil_div(count, kThreads))); }

}  // namespace

Status select_ranked(int64_t columns, int64_t count, int64_t stride, int64_t step, const float* in, int64_t rank,
                     float* out, cudaStream_t stream) {
  const unsigned threads = count <= 2048 ? kThreads : kSelectThreads;
  return launch("median", select_kernel, {dim3(static_cast<unsigned>(columns)), threads, sizeof(SelectShared), stream},
                count, stride, step, in, rank, out);
}

Status set_limit(double threshold, DirectScalars* scalars, cudaStream_t stream) {
  return launch("limit of residuals", set_limit_kernel, {1, 1, 0, stream}, threshold, scalars);
}

Status compare_weights(int64_t rows, const float* base, const float* before, const float* weights, double* parts,
                       DirectScalars* scalars, cudaStream_t stream) {
  const size_t bytes = sizeof(double) * 33 * 3;
  DVT_RETURN_IF_ERROR(launch("comparison of weights", compare_weights_kernel,
                             {dim3(static_cast<unsigned>(kWeightParts)), kThreads, bytes, stream}, rows, base, before,
                             weights, parts));
  return launch("comparison of weights", add_weight_parts_kernel,
                {1, static_cast<unsigned>(kWeightParts), bytes, stream}, parts, scalars);
}

int64_t grid_edges(GridShape grid) { return grid.ny * (grid.nx - 1) + (grid.ny - 1) * grid.nx; }

Status measure_steps(GridShape grid, int64_t channels, const float* nodes, int64_t counted, float* steps,
                     DirectScalars* scalars, cudaStream_t stream) {
  DVT_RETURN_IF_ERROR(launch("steps of the field", steps_kernel,
                             {dim3(static_cast<unsigned>(ceil_div(grid.nodes(), kWarps))), kThreads, 0, stream}, grid,
                             channels, nodes, steps));
  const int64_t edges = grid_edges(grid);
  return launch("mean of steps", mean_of_smallest_kernel,
                {1, static_cast<unsigned>(edges <= 2048 ? kThreads : kSelectThreads), sizeof(SelectShared), stream},
                edges, counted, steps, scalars);
}

Status cosine_weights(int64_t rows, int64_t channels, const float* energy, float* base, cudaStream_t stream) {
  return launch("cosine weights", cosine_weights_kernel, {blocks_for(rows), kThreads, 0, stream}, rows,
                static_cast<float>(channels) / 2, energy, base);
}

Status outlier_weights(int64_t rows, int64_t patches, const float* base, const float* energy, const float* typical,
                       const float* limit, float* weights, cudaStream_t stream) {
  return launch("outlier weights", outlier_weights_kernel, {blocks_for(rows), kThreads, 0, stream}, rows, patches, base,
                energy, typical, limit, weights);
}

Status deviation_energy(int64_t patches, int64_t channels, const float* values, const float* centre, float* energy,
                        cudaStream_t stream) {
  return launch("deviations", deviation_energy_kernel,
                {dim3(static_cast<unsigned>(ceil_div(patches, kWarps))), kThreads, 0, stream}, patches, channels,
                values, centre, energy);
}

Status outlying_ridge(int64_t patches, float mu, float limit, const float* energy, float* ridge, cudaStream_t stream) {
  return launch("ridge", outlying_ridge_kernel, {blocks_for(patches), kThreads, 0, stream}, patches, mu, limit, energy,
                ridge);
}

Status node_statistics(int64_t nodes, int64_t channels, const float* values, double factor, float* centre, float* pull,
                       cudaStream_t stream) {
  return launch("statistics of nodes", node_statistics_kernel,
                {dim3(static_cast<unsigned>(ceil_div(channels, 32))), kThreads, sizeof(double) * kThreads, stream},
                nodes, channels, values, factor, centre, pull);
}

Status find_non_finite(int64_t count, const float* values, uint32_t* flag, cudaStream_t stream) {
  const int64_t blocks = std::min<int64_t>(1024, ceil_div(count, kThreads));
  return launch("check of numbers", find_non_finite_kernel, {dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream},
                count, values, flag);
}

Status inspect_views(int64_t views, int64_t size, const void* features, Dtype type, uint16_t* copy, uint32_t* bad,
                     cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>(64, ceil_div(size, kThreads)));
  constexpr int64_t kMostViews = 65535;  // of a launch
  for (int64_t first = 0; first < views; first += kMostViews) {
    const dim3 grid(blocks, static_cast<unsigned>(std::min(kMostViews, views - first)));
    DVT_RETURN_IF_ERROR(with_row_type(type, [&](auto row) {
      using T = decltype(row);
      return launch("inspection of views", inspect_views_kernel<T>, {grid, kThreads, 0, stream}, size,
                    static_cast<const T*>(features) + first * size,
                    copy ? reinterpret_cast<f16*>(copy) + first * size : nullptr, bad);
    }));
  }
  return Status();
}

}  // namespace dvt::cuda

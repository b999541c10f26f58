// What is asked of a field at the nodes of a grid, and where the constant that F and G share belongs; the contracts are
// in direct_backend.h, the reasons in solvers/bilinear_field.py and solvers/gauge.py.
//
// Few rows and little arithmetic: a query reads four nodes a point from L2. The gauge takes ten steps of three kernels,
// each of which reads the artifact map, 4 MB, from L2.
#include "cuda/runtime.h"
#include "field/bilinear_grid/bilinear_device.cuh"
#include "field/direct_solver/direct_backend.h"
#include "field/direct_solver/direct_select.cuh"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kFootprint = 3;  // points a patch side
constexpr int kGaugeSteps = 10;
constexpr float kOutlying = 3;

DVT_DEVICE void add_field(GridShape grid, int64_t channels, const float* nodes, float x, float y, int64_t c, bool whole,
                          float4& sum) {
  const Place place = place_of(grid, x, y);
  float t[4];
  tap_weights_at(place.at, t);
  const float* p = nodes + static_cast<int64_t>(node_of_cell(grid, place.cell)) * channels;
  add_scaled4(sum, load4(p, c, channels, whole), t[0]);
  add_scaled4(sum, load4(p + channels, c, channels, whole), t[1]);
  add_scaled4(sum, load4(p + grid.nx * channels, c, channels, whole), t[2]);
  add_scaled4(sum, load4(p + (grid.nx + 1) * channels, c, channels, whole), t[3]);
}

__global__ void query_field_kernel(GridShape grid, int64_t channels, const float* nodes, const float* coords,
                                   float* out, bool whole) {
  const int64_t i = blockIdx.x, c = 4 * (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x);
  if (c >= channels) return;
  float4 sum = zero4();
  add_field(grid, channels, nodes, coords[2 * i], coords[2 * i + 1], c, whole, sum);
  store4(out + i * channels, c, channels, whole, sum);
}

__global__ void patch_means_kernel(GridShape grid, int64_t channels, const float* nodes, int64_t height, int64_t width,
                                   const float* coords, float* out, bool whole) {
  const int64_t i = blockIdx.x, c = 4 * (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x);
  if (c >= channels) return;
  const float step_x = (coords[2 * (width - 1)] - coords[0]) / static_cast<float>(max(int64_t{1}, width - 1));
  const float step_y =
      (coords[2 * (height - 1) * width + 1] - coords[1]) / static_cast<float>(max(int64_t{1}, height - 1));
  float4 sum = zero4();
  for (int a = 0; a < kFootprint; ++a)
    for (int b = 0; b < kFootprint; ++b) {
      const float dy = ((a + 0.5f) / kFootprint - 0.5f) * step_y, dx = ((b + 0.5f) / kFootprint - 0.5f) * step_x;
      add_field(grid, channels, nodes, coords[2 * i] + dx, coords[2 * i + 1] + dy, c, whole, sum);
    }
  store4(out + i * channels, c, channels, whole, scale4(sum, 1.0f / (kFootprint * kFootprint)));
}

// A block takes 32 channels; the patches weigh 1 / max(1, distance / (kOutlying * median))^2, or one at the start.
__global__ void centre_kernel(int64_t patches, int64_t channels, const float* artifacts, const float* distance,
                              const float* medians, float* centre) {
  float* parts = &ptx::shared<float>();  // [2][kWarps][32]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  const float limit = distance ? fmaxf(kOutlying * 0.5f * (medians[0] + medians[1]), 1e-30f) : 1;
  float sum = 0, total = 0;
  for (int64_t p = warp; p < patches; p += kWarps) {
    const float excess = distance ? fmaxf(1.0f, distance[p] / limit) : 1.0f, weight = 1 / (excess * excess);
    if (c < channels) sum += weight * artifacts[p * channels + c];
    total += weight;
  }
  parts[warp * 32 + lane] = sum;
  parts[(kWarps + warp) * 32 + lane] = total;
  __syncthreads();
  if (warp > 0 || c >= channels) return;
  for (int w = 1; w < kWarps; ++w) {
    sum += parts[w * 32 + lane];
    total += parts[(kWarps + w) * 32 + lane];
  }
  centre[c] = sum / total;
}

__global__ void distance_kernel(int64_t patches, int64_t channels, const float* artifacts, const float* centre,
                                float* distance) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (p >= patches) return;
  const int lane = threadIdx.x % 32;
  float sum = 0;
  for (int64_t c = lane; c < channels; c += 32) {
    const float d = artifacts[p * channels + c] - centre[c];
    sum += d * d;
  }
  sum = warp_sum(sum);
  if (lane == 0) distance[p] = __fsqrt_rn(sum);
}

// The two in the middle of an even number, the middle one twice of an odd number.
__global__ void middle_kernel(int64_t count, const float* values, float* medians) {
  SelectShared& shared = ptx::shared<SelectShared>();
  const auto load = [&](int64_t i) { return values[i]; };
  const float low = block_select(count, (count - 1) / 2, load, shared);
  const float high = block_select(count, count / 2, load, shared);
  if (threadIdx.x == 0) medians[0] = low, medians[1] = high;
}

__global__ void shift_kernel(int64_t channels, const float* centre, float sign, float* values) {
  const int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (c < channels) values[blockIdx.x * channels + c] += sign * centre[c];
}

Launch by_rows(int64_t rows, int64_t channels, int64_t each, void* stream) {
  return {dim3(static_cast<unsigned>(rows), static_cast<unsigned>(ceil_div(channels, each * kThreads))), kThreads, 0,
          static_cast<cudaStream_t>(stream)};
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

Status query_field(int device, GridShape grid, int64_t channels, const float* nodes, int64_t count, const float* coords,
                   float* out, void* stream) {
  if (count == 0) return Status();
  DeviceGuard guard(device);
  DVT_RETURN_IF_ERROR(guard.status());
  const bool whole = channels % 4 == 0 && aligned(nodes) && aligned(out);
  return launch("query of a field", query_field_kernel, by_rows(count, channels, 4, stream), grid, channels, nodes,
                coords, out, whole);
}

Status field_patch_means(int device, GridShape grid, int64_t channels, const float* nodes, int64_t height,
                         int64_t width, const float* coords, float* out, void* stream) {
  DeviceGuard guard(device);
  DVT_RETURN_IF_ERROR(guard.status());
  const bool whole = channels % 4 == 0 && aligned(nodes) && aligned(out);
  return launch("means over patches", patch_means_kernel, by_rows(height * width, channels, 4, stream), grid, channels,
                nodes, height, width, coords, out, whole);
}

size_t gauge_workspace_bytes(int64_t patches, int64_t channels) {
  return sizeof(float) * static_cast<size_t>(patches + channels + 2);
}

Status apply_gauge(int device, int64_t patches, int64_t channels, float* artifacts, int64_t nodes, float* node_values,
                   void* workspace, void* stream) {
  DeviceGuard guard(device);
  DVT_RETURN_IF_ERROR(guard.status());
  const auto s = static_cast<cudaStream_t>(stream);
  float* medians = static_cast<float*>(workspace);
  float *centre = medians + 2, *distance = centre + channels;
  const Launch by_channels = {dim3(static_cast<unsigned>(ceil_div(channels, 32))), kThreads,
                              sizeof(float) * 2 * kThreads, s};
  for (int step = 0; step <= kGaugeSteps; ++step) {
    if (step > 0) {
      DVT_RETURN_IF_ERROR(launch("distances", distance_kernel,
                                 {dim3(static_cast<unsigned>(ceil_div(patches, kWarps))), kThreads, 0, s}, patches,
                                 channels, artifacts, centre, distance));
      DVT_RETURN_IF_ERROR(launch("median of distances", middle_kernel,
                                 {1, patches <= 2048 ? 256u : 1024u, sizeof(SelectShared), s}, patches, distance,
                                 medians));
    }
    DVT_RETURN_IF_ERROR(launch("centre of artifacts", centre_kernel, by_channels, patches, channels, artifacts,
                               step > 0 ? distance : nullptr, medians, centre));
  }
  DVT_RETURN_IF_ERROR(launch("gauge of artifacts", shift_kernel, by_rows(patches, channels, 1, stream), channels,
                             centre, -1.0f, artifacts));
  return launch("gauge of nodes", shift_kernel, by_rows(nodes, channels, 1, stream), channels, centre, 1.0f,
                node_values);
}

}  // namespace dvt::cuda

// Sweeps that a block makes for one patch or a warp for one row; the contract is in direct_sweeps.h.
#include "field/bilinear_grid/bilinear_device.cuh"
#include "field/direct_solver/direct_dispatch.h"
#include "field/direct_solver/direct_sweeps.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBatch = 8;

struct PatchShared {
  const void* y[kThreads];
  float weight[kThreads];
  uint32_t warp_count[kWarps];
};

// How many of the block's threads say yes, and in *before how many of them come before this one. Two barriers.
DVT_DEVICE uint32_t count_before(bool yes, uint32_t* warp_count, uint32_t* before) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const uint32_t votes = __ballot_sync(0xffffffffu, yes);
  if (lane == 0) warp_count[warp] = __popc(votes);
  __syncthreads();
  uint32_t total = 0;
  *before = __popc(votes & ((1u << lane) - 1u));
  for (int w = 0; w < warps; ++w) {
    if (w < warp) *before += warp_count[w];
    total += warp_count[w];
  }
  __syncthreads();
  return total;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) patch_sweep_kernel(PatchSweep s) {
  PatchShared& shared = ptx::shared<PatchShared>();
  const int64_t channels = s.shape.channels, patches = s.shape.patches, patch = blockIdx.x;
  const int64_t c = 4 * (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x);
  const bool whole = channels % 4 == 0;
  const auto row_of = [&](int64_t view) { return (s.first_view + view) * patches + patch; };
  bool differences = s.from_weights != nullptr;
  uint32_t before = 0;
  if (differences) {
    uint32_t changed = 0;
    for (int64_t first = 0; first < s.shape.views; first += blockDim.x) {
      const int64_t view = first + threadIdx.x;
      const bool moved = view < s.shape.views && s.weights[row_of(view)] != s.from_weights[row_of(view)];
      changed += count_before(moved, shared.warp_count, &before);
    }
    // Where most rows changed, differences from large sums would leave nothing but rounding.
    differences = 2 * static_cast<int64_t>(changed) <= s.shape.views;
  }
  const bool continues = s.from && (differences || !s.from_weights);
  float4 sum = continues ? load4(s.from + patch * channels, c, channels, whole) : zero4();
  for (int64_t first = 0; first < s.shape.views; first += blockDim.x) {
    const int64_t view = first + threadIdx.x;
    float weight = 0;
    if (view < s.shape.views) {
      weight = s.weights[row_of(view)];
      if (differences) weight -= s.from_weights[row_of(view)];
    }
    const bool counts = weight != 0.0f;  // true of NaN
    const uint32_t count = count_before(counts, shared.warp_count, &before);
    if (counts) {
      shared.y[before] = static_cast<const T*>(s.bank.views[s.first_view + view]) + patch * channels;
      shared.weight[before] = weight;
    }
    __syncthreads();
    uint32_t i = 0;
    if (s.bank.whole && c < channels)
      for (; i + kBatch <= count; i += kBatch) {
        float4 y[kBatch];
#pragma unroll
        for (int r = 0; r < kBatch; ++r) y[r] = load_whole4(static_cast<const T*>(shared.y[i + r]) + c);
#pragma unroll
        for (int r = 0; r < kBatch; ++r) add_scaled4(sum, y[r], shared.weight[i + r]);
      }
    for (; i < count; ++i)
      add_scaled4(sum, load4(static_cast<const T*>(shared.y[i]), c, channels, s.bank.whole), shared.weight[i]);
    __syncthreads();
  }
  store4(s.sums + patch * channels, c, channels, whole, sum);
}

// F(x) of a row, four channels of it.
DVT_DEVICE float4 field_at(const float* nodes, GridShape grid, Place place, int64_t c, int64_t channels, bool whole) {
  float t[4];
  tap_weights_at(place.at, t);
  const int64_t node = node_of_cell(grid, place.cell);
  const float* p = nodes + node * channels;
  float4 f = scale4(load4(p, c, channels, whole), t[0]);
  add_scaled4(f, load4(p + channels, c, channels, whole), t[1]);
  add_scaled4(f, load4(p + grid.nx * channels, c, channels, whole), t[2]);
  add_scaled4(f, load4(p + (grid.nx + 1) * channels, c, channels, whole), t[3]);
  return f;
}

template <class T>
__global__ void __launch_bounds__(kThreads) row_energy_kernel(RowEnergy s) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (k >= s.count) return;
  const int lane = threadIdx.x % 32;
  const int64_t channels = s.shape.channels, patches = s.shape.patches;
  const int64_t view = (s.first + k) / patches * s.stride, patch = (s.first + k) % patches;
  const int64_t row = view * patches + patch;
  const T* y = static_cast<const T*>(s.bank.views[view]) + patch * channels;
  const bool whole = channels % 4 == 0;
  const Place place = {s.places.cell[row], s.places.at[row]};
  float energy = 0;
#pragma unroll 2
  for (int64_t c = 4 * lane; c < channels; c += 128) {
    float4 e = load4(y, c, channels, s.bank.whole);
    if (s.nodes) {
      e = subtract4(e, load4(s.artifacts + patch * channels, c, channels, whole));
      e = subtract4(e, field_at(s.nodes, s.shape.grid, place, c, channels, whole));
    }
    energy += square4(e);
  }
  energy = warp_sum(energy);
  if (lane == 0) s.energy[k] = energy;
}

template <class T>
__global__ void __launch_bounds__(kThreads) gain_sweep_kernel(GainSweep s) {
  const int64_t channels = s.shape.channels, patches = s.shape.patches, patch = blockIdx.x;
  const int64_t c = 4 * (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x);
  if (c >= channels) return;
  const bool whole = channels % 4 == 0;
  const float4 centre = load4(s.centre, c, channels, whole), pull = load4(s.pull, c, channels, whole);
  const float4 artifact = load4(s.artifacts + patch * channels, c, channels, whole);
  float4 cross = zero4(), square = zero4(), sum = zero4();
#pragma unroll 2
  for (int64_t view = 0; view < s.shape.views; ++view) {
    const int64_t row = view * patches + patch;
    const T* y = static_cast<const T*>(s.bank.views[view]) + patch * channels;
    const float4 field = field_at(s.nodes, s.shape.grid, {s.places.cell[row], s.places.at[row]}, c, channels, whole);
    const float4 e = subtract4(subtract4(load4(y, c, channels, s.bank.whole), field), artifact);
    const float4 f = subtract4(field, centre), weighted = scale4(f, s.weights[row]);
    cross = add4(cross, multiply4(weighted, e));
    square = add4(square, multiply4(weighted, f));
    sum = add4(sum, weighted);
  }
  const float4 gain = make_float4(cross.x / (square.x + pull.x), cross.y / (square.y + pull.y),
                                  cross.z / (square.z + pull.z), cross.w / (square.w + pull.w));
  store4(s.gain + patch * channels, c, channels, whole, gain);
  store4(s.field_sums + patch * channels, c, channels, whole, sum);
}

Launch patch_launch(const SweepShape& shape, size_t shared, cudaStream_t stream) {
  const int64_t threads = std::min<int64_t>(kThreads, round_up(ceil_div(shape.channels, 4), 32));
  return {dim3(static_cast<unsigned>(shape.patches), static_cast<unsigned>(ceil_div(shape.channels, 4 * threads))),
          static_cast<unsigned>(threads), shared, stream};
}

}  // namespace

Status patch_sweep(const PatchSweep& s, cudaStream_t stream) {
  return with_row_type(s.bank.type, [&](auto type) {
    return launch("sweep of patches", patch_sweep_kernel<decltype(type)>,
                  patch_launch(s.shape, sizeof(PatchShared), stream), s);
  });
}

Status row_energy(const RowEnergy& s, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(s.count, kWarps)));
  return with_row_type(s.bank.type, [&](auto type) {
    return launch("energies of rows", row_energy_kernel<decltype(type)>, {grid, kThreads, 0, stream}, s);
  });
}

Status gain_sweep(const GainSweep& s, cudaStream_t stream) {
  return with_row_type(s.bank.type, [&](auto type) {
    return launch("sweep of gains", gain_sweep_kernel<decltype(type)>, patch_launch(s.shape, 0, stream), s);
  });
}

}  // namespace dvt::cuda

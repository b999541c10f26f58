#include "field/direct_solver/direct_sweeps.h"

#include "field/bilinear_grid/bilinear_device.cuh"
#include "field/direct_solver/direct_dispatch.h"

namespace dvt::cuda {
namespace {

constexpr int kMostThreads = 512, kFewThreads = 192, kMostWarps = kMostThreads / 32;
constexpr int kBatch = 4;     // rows whose residuals are reduced together
constexpr int kAhead = 2;     // batches on their way while one is worked on
constexpr int kListed = 128;  // rows whose places are in shared memory at a time
static_assert(kMostReweightedChannels == 4 * kMostThreads);

struct ListedRow {
  const void* y;
  uint32_t row, patch;
  float2 at;
  float weight, typical;
};
struct CellShared {
  ListedRow rows[kListed];
  float4 energy[2][kMostWarps];  // of the rows of a batch
};

// Features on their way to a thread, which alone reads them: four channels of each row of a few batches, in shared
// memory because registers are taken by the nodes and their sums. Where rows cannot be read in fours, nothing is on its
// way, and they are read when they are asked for.
template <class T>
struct FeatureRing {
  static constexpr size_t bytes(int threads) {
    return (kAhead + 1) * kBatch * sizeof(T) * 4 * static_cast<size_t>(threads);
  }

  const ListedRow* rows;
  char* slots;  // of this thread; the next row's are `stride` bytes on
  int stride;
  int64_t c, channels;
  bool whole;

  DVT_DEVICE char* slot(int row) const { return slots + row % ((kAhead + 1) * kBatch) * stride; }
  DVT_DEVICE void fetch(int begin, int count) const {
    if (whole && c < channels)
#pragma unroll
      for (int r = begin; r < begin + kBatch; ++r) {
        if (r >= count) break;
        const T* from = static_cast<const T*>(rows[r].y) + c;
        if constexpr (sizeof(T) == 4)
          ptx::copy_async_16(slot(r), from);
        else
          ptx::copy_async_small<8>(slot(r), from);
      }
    ptx::copy_async_commit();
  }
  DVT_DEVICE float4 get(int row) const {
    if (whole && c < channels) return load_whole4(reinterpret_cast<const T*>(slot(row)));
    return load4(static_cast<const T*>(rows[row].y), c, channels, whole);
  }
};

// Four sums over the warp in six shuffles instead of twenty: lane l ends up with that of value l / 8.
DVT_DEVICE float warp_sum_of_four(const float (&v)[kBatch], int lane) {
  const bool upper = lane & 16, odd = lane & 8;
  float a = (upper ? v[2] : v[0]) + __shfl_xor_sync(0xffffffffu, upper ? v[0] : v[2], 16);
  float b = (upper ? v[3] : v[1]) + __shfl_xor_sync(0xffffffffu, upper ? v[1] : v[3], 16);
  float sum = (odd ? b : a) + __shfl_xor_sync(0xffffffffu, odd ? a : b, 8);
  for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// Up to kFewThreads threads, 768 channels, three blocks of them fit the registers of a multiprocessor.
template <class T, bool kReweight, int kThreads>
__global__ void __launch_bounds__(kThreads, kThreads == kFewThreads ? 3 : 1) cell_sweep_kernel(CellSweep s) {
  CellShared& shared = ptx::shared<CellShared>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int64_t channels = s.shape.channels, cell = blockIdx.x;
  const int64_t c = 4 * (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x);
  const bool whole_sums = channels % 4 == 0;
  const uint32_t begin = s.list.cell_start[cell], end = s.list.cell_start[cell + 1];
  const uint32_t patches = static_cast<uint32_t>(s.shape.patches);
  if (s.add && begin == end) return;
  float* const sums = s.sums + cell * 4 * channels;
  float4 sum[4], field[4];
  for (int k = 0; k < 4; ++k) {
    sum[k] = s.add ? load4(sums + k * channels, c, channels, whole_sums) : zero4();
    field[k] = zero4();
  }
  float limit = 1;
  if constexpr (kReweight) {
    const int64_t nx = s.shape.grid.nx, node = node_of_cell(s.shape.grid, static_cast<uint32_t>(cell));
    limit = *s.limit;
    field[0] = load4(s.nodes + node * channels, c, channels, whole_sums);
    field[1] = load4(s.nodes + (node + 1) * channels, c, channels, whole_sums);
    field[2] = load4(s.nodes + (node + nx) * channels, c, channels, whole_sums);
    field[3] = load4(s.nodes + (node + nx + 1) * channels, c, channels, whole_sums);
  }
  const FeatureRing<T> ring = {shared.rows,
                               ptx::shared_memory() + sizeof(CellShared) + threadIdx.x * sizeof(T) * 4,
                               static_cast<int>(blockDim.x * sizeof(T) * 4),
                               c,
                               channels,
                               s.bank.whole};
  int flip = 0;
  for (uint32_t first = begin; first < end; first += kListed) {
    const int count = static_cast<int>(min(end - first, static_cast<uint32_t>(kListed)));
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const uint32_t row = s.list.row[first + i], view = row / patches, patch = row - view * patches;
      const char* features = static_cast<const char*>(s.bank.views[view]);
      shared.rows[i] = {features + static_cast<int64_t>(patch) * channels * static_cast<int64_t>(sizeof(T)),
                        row,
                        patch,
                        s.places.at[row],
                        s.weights[row],
                        kReweight ? s.typical[patch] : 0.0f};
    }
    __syncthreads();
    for (int ahead = 0; ahead < kAhead; ++ahead) ring.fetch(ahead * kBatch, count);
    for (int b = 0; b < count; b += kBatch) {
      ring.fetch(b + kAhead * kBatch, count);
      ptx::copy_async_wait<kAhead>();
      float weight[kBatch];
      if constexpr (kReweight) {
        float4 left[kBatch];
        float energy[kBatch];
#pragma unroll
        for (int r = 0; r < kBatch; ++r)
          left[r] = b + r < count ? load4(s.artifacts + shared.rows[b + r].patch * channels, c, channels, whole_sums)
                                  : zero4();
#pragma unroll
        for (int r = 0; r < kBatch; ++r) {
          energy[r] = 0;
          if (b + r >= count) continue;
          float t[4];
          tap_weights_at(shared.rows[b + r].at, t);
          left[r] = subtract4(ring.get(b + r), left[r]);
          for (int k = 0; k < 4; ++k) add_scaled4(left[r], field[k], -t[k]);
          energy[r] = square4(left[r]);
        }
        const float mine = warp_sum_of_four(energy, lane);
        if (lane % 8 == 0) reinterpret_cast<float*>(&shared.energy[flip][warp])[lane / 8] = mine;
        __syncthreads();
        float4 sums_of_rows = zero4();
        for (int w = 0; w < warps; ++w) sums_of_rows = add4(sums_of_rows, shared.energy[flip][w]);
        const float total[kBatch] = {sums_of_rows.x, sums_of_rows.y, sums_of_rows.z, sums_of_rows.w};
#pragma unroll
        for (int r = 0; r < kBatch; ++r) {
          const float excess = fmaxf(1.0f, __fsqrt_rn(fmaxf(total[r], shared.rows[b + r].typical)) / limit);
          weight[r] = b + r < count ? shared.rows[b + r].weight / (excess * excess) : 0.0f;
          if (threadIdx.x == static_cast<unsigned>(r) && b + r < count)
            s.new_weights[shared.rows[b + r].row] = weight[r];
        }
        flip ^= 1;
      } else {
#pragma unroll
        for (int r = 0; r < kBatch; ++r) weight[r] = b + r < count ? shared.rows[b + r].weight : 0.0f;
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        if (b + r >= count) break;
        float t[4];
        tap_weights_at(shared.rows[b + r].at, t);
        float4 value = ring.get(b + r);
        if (kReweight && s.subtract_artifacts)
          value = subtract4(value, load4(s.artifacts + shared.rows[b + r].patch * channels, c, channels, whole_sums));
        value = scale4(value, weight[r]);
        for (int k = 0; k < 4; ++k) add_scaled4(sum[k], value, t[k]);
      }
    }
  }
  ptx::copy_async_wait<0>();
  for (int k = 0; k < 4; ++k) store4(sums + k * channels, c, channels, whole_sums, sum[k]);
}

__global__ void map_sweep_kernel(MapSweep s) {
  const int64_t channels = s.shape.channels, cell = blockIdx.x;
  const int64_t c = 4 * (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x);
  if (c >= channels) return;
  const bool whole = channels % 4 == 0;
  const int64_t nx = s.shape.grid.nx, node = node_of_cell(s.shape.grid, static_cast<uint32_t>(cell));
  float4 sum[4] = {zero4(), zero4(), zero4(), zero4()}, field[4] = {zero4(), zero4(), zero4(), zero4()};
  float4 centre = zero4();
  if (s.nodes) {
    field[0] = load4(s.nodes + node * channels, c, channels, whole);
    field[1] = load4(s.nodes + (node + 1) * channels, c, channels, whole);
    field[2] = load4(s.nodes + (node + nx) * channels, c, channels, whole);
    field[3] = load4(s.nodes + (node + nx + 1) * channels, c, channels, whole);
    centre = load4(s.centre, c, channels, whole);
  }
  for (uint32_t i = s.list.cell_start[cell]; i < s.list.cell_start[cell + 1]; ++i) {
    const uint32_t row = s.list.row[i], patch = row % static_cast<uint32_t>(s.shape.patches);
    float t[4];
    tap_weights_at(s.places.at[row], t);
    float4 value = load4(s.map + patch * channels, c, channels, whole);
    if (s.nodes) {
      float4 f = scale4(centre, -1.0f);
      for (int k = 0; k < 4; ++k) add_scaled4(f, field[k], t[k]);
      value = multiply4(value, f);
    }
    value = scale4(value, -s.weights[row]);
    for (int k = 0; k < 4; ++k) add_scaled4(sum[k], value, t[k]);
  }
  for (int k = 0; k < 4; ++k) store4(s.sums + (cell * 4 + k) * channels, c, channels, whole, sum[k]);
}

__global__ void gather_nodes_kernel(GridShape grid, int64_t channels, const float* sums, bool add, float* out) {
  const int64_t node = blockIdx.x, i = node / grid.nx, j = node % grid.nx;
  const int64_t c = 4 * (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x);
  const bool whole = channels % 4 == 0;
  float4 total = add ? load4(out + node * channels, c, channels, whole) : zero4();
  for (int k = 3; k >= 0; --k) {  // this node is node k of the cell k / 2 above and k % 2 to the left
    const int64_t row = i - k / 2, column = j - k % 2;
    if (row < 0 || column < 0 || row >= grid.ny - 1 || column >= grid.nx - 1) continue;
    const int64_t cell = row * (grid.nx - 1) + column;
    total = add4(total, load4(sums + (cell * 4 + k) * channels, c, channels, whole));
  }
  store4(out + node * channels, c, channels, whole, total);
}

int threads_for(int64_t channels, int64_t most) {
  return static_cast<int>(std::min(most, round_up(ceil_div(channels, 4), 32)));
}

}  // namespace

bool reads_whole(const void* at, Dtype type, int64_t channels) {
  return channels % 4 == 0 && reinterpret_cast<uintptr_t>(at) % static_cast<size_t>(4 * size_of(type)) == 0;
}

Status cell_sweep(const CellSweep& s, bool reweight, cudaStream_t stream) {
  if (reweight && s.shape.channels > kMostReweightedChannels)
    return invalid_argument("a sweep reweights at most ", kMostReweightedChannels, " channels, got ", s.shape.channels);
  const int threads = threads_for(s.shape.channels, reweight ? kMostThreads : 256);
  const dim3 grid(static_cast<unsigned>(s.shape.cells()),
                  static_cast<unsigned>(ceil_div(s.shape.channels, 4 * threads)));
  return with_row_type(s.bank.type, [&](auto type) {
    using T = decltype(type);
    const auto kernel = !reweight                ? cell_sweep_kernel<T, false, kMostThreads>
                        : threads <= kFewThreads ? cell_sweep_kernel<T, true, kFewThreads>
                                                 : cell_sweep_kernel<T, true, kMostThreads>;
    const size_t bytes = sizeof(CellShared) + FeatureRing<T>::bytes(threads);
    return launch("sweep of cells", kernel, {grid, static_cast<unsigned>(threads), bytes, stream}, s);
  });
}

Status map_sweep(const MapSweep& s, cudaStream_t stream) {
  const int threads = threads_for(s.shape.channels, 256);
  const dim3 grid(static_cast<unsigned>(s.shape.cells()),
                  static_cast<unsigned>(ceil_div(s.shape.channels, 4 * threads)));
  return launch("sweep of a map", map_sweep_kernel, {grid, static_cast<unsigned>(threads), 0, stream}, s);
}

Status gather_nodes(GridShape grid, int64_t channels, const float* sums, bool add, float* out, cudaStream_t stream) {
  const int threads = threads_for(channels, 256);
  const dim3 blocks(static_cast<unsigned>(grid.nodes()), static_cast<unsigned>(ceil_div(channels, 4 * threads)));
  return launch("gather of nodes", gather_nodes_kernel, {blocks, static_cast<unsigned>(threads), 0, stream}, grid,
                channels, sums, add, out);
}

}  // namespace dvt::cuda

#include "field/direct_solver/direct_rows.h"

#include "field/bilinear_grid/bilinear_device.cuh"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kDigits = 256;
constexpr int kKeysOfWarp = kSortTile / kWarps, kSteps = kKeysOfWarp / 32;

__global__ void locate_kernel(GridShape grid, int64_t rows, const float* coords, uint32_t* cell, float2* at) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows) return;
  const Place place = place_of(grid, coords[2 * i], coords[2 * i + 1]);
  cell[i] = place.cell;
  at[i] = place.at;
}

__global__ void cell_keys_kernel(int64_t count, const uint32_t* cell, uint32_t first, uint32_t* keys,
                                 uint32_t* values) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  keys[i] = cell[first + i];
  values[i] = first + static_cast<uint32_t>(i);
}

__global__ void patch_keys_kernel(int64_t count, const uint32_t* row, uint32_t patches, uint32_t* keys,
                                  uint32_t* values) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  keys[i] = row[i] % patches;
  values[i] = row[i];
}

__global__ void cell_starts_kernel(int64_t count, const uint32_t* keys, uint32_t cells, uint32_t* start) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i > count) return;
  const uint32_t from = i == 0 ? 0 : keys[i - 1] + 1, to = i == count ? cells : keys[i];
  for (uint32_t cell = from; cell <= to; ++cell) start[cell] = static_cast<uint32_t>(i);
}

// counts[digit * tiles + tile]: so ordered, their running sum is where each tile's keys of a digit go.
__global__ void count_digits_kernel(int64_t count, const uint32_t* keys, int shift, uint32_t* counts) {
  uint32_t* shared = &ptx::shared<uint32_t>();
  for (int d = threadIdx.x; d < kDigits; d += blockDim.x) shared[d] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * kSortTile, end = min(count, begin + kSortTile);
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) atomicAdd(shared + ((keys[i] >> shift) & 255u), 1u);
  __syncthreads();
  for (int d = threadIdx.x; d < kDigits; d += blockDim.x)
    counts[static_cast<int64_t>(d) * gridDim.x + blockIdx.x] = shared[d];
}

// The running sum of what comes before, in place; one block of 1024 threads, eight numbers a thread at a time.
__global__ void running_sum_kernel(int64_t count, uint32_t* values) {
  constexpr int kEach = 8;
  uint32_t* warp_totals = &ptx::shared<uint32_t>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  uint32_t before = 0;
  for (int64_t first = 0; first < count; first += static_cast<int64_t>(blockDim.x) * kEach) {
    const int64_t begin = first + threadIdx.x * kEach;
    uint32_t v[kEach], mine = 0;
    for (int k = 0; k < kEach; ++k) {
      v[k] = begin + k < count ? values[begin + k] : 0;
      mine += v[k];
    }
    uint32_t running = mine;
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t left = __shfl_up_sync(0xffffffffu, running, step);
      if (lane >= step) running += left;
    }
    if (lane == 31) warp_totals[warp] = running;
    __syncthreads();
    uint32_t sum = before + running - mine, total = 0;
    for (int w = 0; w < warps; ++w) {
      if (w < warp) sum += warp_totals[w];
      total += warp_totals[w];
    }
    for (int k = 0; k < kEach; ++k) {
      if (begin + k < count) values[begin + k] = sum;
      sum += v[k];
    }
    before += total;
    __syncthreads();
  }
}

// A warp owns kKeysOfWarp consecutive keys. It counts its digits, the block turns the counts into places, and then
// each key goes to its digit's place plus the number of equal digits before it.
__global__ void move_pairs_kernel(int64_t count, int shift, const uint32_t* keys, const uint32_t* values,
                                  const uint32_t* counts, uint32_t* keys_out, uint32_t* values_out) {
  uint32_t* place = &ptx::shared<uint32_t>();  // [kWarps][kDigits]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i < kWarps * kDigits; i += blockDim.x) place[i] = 0;
  __syncthreads();
  uint32_t* mine = place + warp * kDigits;
  const int64_t begin = blockIdx.x * kSortTile + warp * kKeysOfWarp;
  uint32_t key[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t i = begin + step * 32 + lane;
    const bool valid = i < count;
    key[step] = valid ? keys[i] : 0;
    const uint32_t digit = valid ? (key[step] >> shift) & 255u : 256u + lane;  // lanes beyond the end match nobody
    const uint32_t same = __match_any_sync(0xffffffffu, digit);
    if (valid && __ffs(static_cast<int>(same)) - 1 == lane) mine[digit] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  for (int d = threadIdx.x; d < kDigits; d += blockDim.x) {
    uint32_t at = counts[static_cast<int64_t>(d) * gridDim.x + blockIdx.x];
    for (int w = 0; w < kWarps; ++w) {
      const uint32_t n = place[w * kDigits + d];
      place[w * kDigits + d] = at;
      at += n;
    }
  }
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t i = begin + step * 32 + lane;
    const bool valid = i < count;
    const uint32_t digit = valid ? (key[step] >> shift) & 255u : 256u + lane;
    const uint32_t same = __match_any_sync(0xffffffffu, digit);
    const uint32_t to = valid ? mine[digit] + __popc(same & ((1u << lane) - 1u)) : 0;
    __syncwarp();
    if (valid) {
      keys_out[to] = key[step];
      values_out[to] = values[i];
      if (__ffs(static_cast<int>(same)) - 1 == lane) mine[digit] += __popc(same);
    }
    __syncwarp();
  }
}

dim3 blocks_for(int64_t count) { return dim3(static_cast<unsigned>(ceil_div(count, kThreads))); }

}  // namespace

Status locate_rows(GridShape grid, int64_t rows, const float* coords, uint32_t* cell, float2* at, cudaStream_t stream) {
  return launch("locate rows", locate_kernel, {blocks_for(rows), kThreads, 0, stream}, grid, rows, coords, cell, at);
}

Status cell_keys(int64_t count, const uint32_t* cell, uint32_t first, uint32_t* keys, uint32_t* values,
                 cudaStream_t stream) {
  return launch("cell keys", cell_keys_kernel, {blocks_for(count), kThreads, 0, stream}, count, cell, first, keys,
                values);
}

Status patch_keys(int64_t count, const uint32_t* row, int64_t patches, uint32_t* keys, uint32_t* values,
                  cudaStream_t stream) {
  return launch("patch keys", patch_keys_kernel, {blocks_for(count), kThreads, 0, stream}, count, row,
                static_cast<uint32_t>(patches), keys, values);
}

Status cell_starts(int64_t count, const uint32_t* keys, int64_t cells, uint32_t* start, cudaStream_t stream) {
  return launch("cell starts", cell_starts_kernel, {blocks_for(count + 1), kThreads, 0, stream}, count, keys,
                static_cast<uint32_t>(cells), start);
}

Status sort_pairs(int64_t count, int bits, const SortSpace& space, int* result, cudaStream_t stream) {
  const dim3 tiles(static_cast<unsigned>(ceil_div(count, kSortTile)));
  int from = 0;
  for (int shift = 0; shift < bits; shift += 8, from ^= 1) {
    DVT_RETURN_IF_ERROR(launch("count digits", count_digits_kernel,
                               {tiles, kThreads, kDigits * sizeof(uint32_t), stream}, count, space.keys[from], shift,
                               space.counts));
    DVT_RETURN_IF_ERROR(launch("running sum", running_sum_kernel, {1, 1024, 32 * sizeof(uint32_t), stream},
                               static_cast<int64_t>(tiles.x) * kDigits, space.counts));
    DVT_RETURN_IF_ERROR(launch(
        "move pairs", move_pairs_kernel, {tiles, kThreads, kWarps * kDigits * sizeof(uint32_t), stream}, count, shift,
        space.keys[from], space.values[from], space.counts, space.keys[from ^ 1], space.values[from ^ 1]));
  }
  *result = from;
  return Status();
}

}  // namespace dvt::cuda

// Lists of entries, replay, and Adam on them: lazy_grid_cuda.h says how it goes together.
//
// Counted for the official grid (16 levels of 8, 2.46 million entries, batch 2,048): a batch reads 131,072 corners of
// about 82,000 entries; Adam on those moves 82,000 x 8 x 24 bytes = 16 MB a step, a sweep of 1/64 of the entries 7.4
// MB. All entries together take one step of Adam a step, 19.7 million chains of about 26 instructions, 0.5 G of them,
// whoever does them; they run beside the matrix products, on units that those leave idle.
#include <climits>

#include "cuda/runtime.h"
#include "field/adam/adam.cuh"
#include "field/features/batch.cuh"
#include "field/hash_grid/hash_grid.cuh"
#include "field/hash_grid/lazy_grid_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCorners = 4;
constexpr int kPointsPerBlock = kThreads / kCorners;

__global__ void lazy_grid_begin_kernel(FitClock* clock, uint32_t* counts) {
  if (threadIdx.x == 0) clock->epoch += 2;  // what was claimed for a batch that never came counts for nothing
  counts[threadIdx.x] = 0;
}

// A block's entries before they join the list.
struct Found {
  uint32_t entries[kThreads];  // claimed by this block
  uint32_t late[kThreads];     // those of them that it brings up to date
  int count, late_count;
  uint32_t base;
};

// V neighbouring floats of an entry, from the end of step `from` to that of step `until`.
template <int V>
DVT_DEVICE void replay_chunk(const LazyGrid& lazy, int64_t place, int32_t from, int32_t until) {
  Floats<V> p = load_floats<V>(lazy.params + place), m = load_floats<V>(lazy.exp_avg + place),
            v = load_floats<V>(lazy.exp_avg_sq + place);
  adam_replay<V>(lazy.constants, lazy.steps, from, until, p.x, m.x, v.x);
  store_floats<V>(lazy.params + place, p);
  store_floats<V>(lazy.exp_avg + place, m);
  store_floats<V>(lazy.exp_avg_sq + place, v);
}

// A thread a corner, a level a block row. Whoever claims an entry first lists it.
template <int F>
__global__ void __launch_bounds__(kThreads)
    lazy_grid_prepare_kernel(LazyGrid lazy, Bank bank, Batch batch, int offset) {
  Found& found = ptx::shared<Found>();
  if (threadIdx.x == 0) found.count = found.late_count = 0;
  __syncthreads();
  const uint32_t epoch = batch.clock->epoch + static_cast<uint32_t>(offset + 1);
  const int32_t until = batch.clock->step + offset + 1;
  // The batch before last is done with its counter, which the batch after next will want at zero.
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) lazy.counts[(epoch + 2) % 4] = 0;

  const int64_t i = static_cast<int64_t>(blockIdx.x) * kPointsPerBlock + threadIdx.x / kCorners;
  if (i < batch.n) {
    const HashGridLevel level = lazy.grid.levels[blockIdx.y];
    const Cell<2> cell(level, bank.coords + 2 * sample_of(batch, bank.rows, i, offset + 1));
    const uint32_t entry = cell.entry(level, static_cast<int>(threadIdx.x) % kCorners);
    // Most corners of coarse levels are claimed already: a read that finds it so saves the exchange.
    const uint32_t before = lazy.claims[entry] == epoch ? epoch : atomicExch(&lazy.claims[entry], epoch);
    if (before != epoch) {
      found.entries[atomicAdd(&found.count, 1)] = entry;
      if (before != epoch - 1) found.late[atomicAdd(&found.late_count, 1)] = entry;
    }
  }
  __syncthreads();
  const int count = found.count, late = found.late_count;
  if (threadIdx.x == 0 && count > 0) found.base = atomicAdd(&lazy.counts[epoch % 4], static_cast<uint32_t>(count));
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) {
    const uint32_t entry = found.entries[threadIdx.x], slot = found.base + threadIdx.x;
    lazy.lists[epoch % 2 * lazy.max_count + slot] = entry;
    lazy.slots[epoch % 2 * lazy.grid.entries + entry] = slot;
  }
  constexpr int V = F < 4 ? F : 4, kChunks = F / V;
  for (int at = static_cast<int>(threadIdx.x); at < late * kChunks; at += kThreads) {
    const uint32_t entry = found.late[at / kChunks];
    const int32_t from = lazy.last_step[entry];
    if (from < until) replay_chunk<V>(lazy, static_cast<int64_t>(entry) * F + at % kChunks * V, from, until);
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < late) lazy.last_step[found.late[threadIdx.x]] = until;
}

// Chunks of V floats a thread; those of an entry are neighbours in a warp. Entries that the step under way or the next
// one reads are theirs. A flush has no such steps.
template <int F, bool kFlush>
__global__ void __launch_bounds__(kThreads)
    lazy_grid_sweep_kernel(LazyGrid lazy, const FitClock* clock, int offset, int64_t window) {
  constexpr int V = F < 4 ? F : 4, kChunks = F / V;
  const int64_t periods = (lazy.grid.entries + window - 1) / window;
  const int32_t until = clock->step + (kFlush ? 0 : offset + 1);
  const int64_t first = kFlush ? 0 : (clock->step + offset) % periods * window;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, within = index / kChunks;
  const int64_t entry = first + within;
  bool active = within < window && entry < lazy.grid.entries;
  int32_t from = 0;
  if (active) {
    const uint32_t epoch = clock->epoch + static_cast<uint32_t>(offset + 1), claim = lazy.claims[entry];
    from = lazy.last_step[entry];
    active = from < until && (kFlush || (claim != epoch && claim != epoch - 1));
  }
  if (active) replay_chunk<V>(lazy, entry * F + index % kChunks * V, from, until);
  __syncwarp();  // the entry's other chunks have read its last step
  if (active && index % kChunks == 0) lazy.last_step[entry] = until;
}

// A chunk of a listed entry's floats a thread: its gradient, which is zeroed.
template <int F, int V>
DVT_DEVICE Floats<V> take_gradient(const LazyGrid& lazy, int64_t slot, int chunk) {
  const int64_t at = slot * F + chunk * V;
  Floats<V> grad;
  if (lazy.fixed_grads) {
    const FixedPoint fixed{lazy.fixed_scale, lazy.fixed_limit};
#pragma unroll
    for (int i = 0; i < V; ++i) {
      grad.x[i] = fixed.to_float(static_cast<long long>(lazy.fixed_grads[at + i]));
      lazy.fixed_grads[at + i] = 0;
    }
  } else {
    grad = load_floats<V>(lazy.grads + at);
    store_floats<V>(lazy.grads + at, Floats<V>{});
  }
  return grad;
}

// d_params null: a step of Adam. Entries are at the end of the step before.
template <int F>
__global__ void __launch_bounds__(kThreads)
    lazy_grid_update_kernel(LazyGrid lazy, const FitClock* clock, int offset, float* d_params) {
  constexpr int V = F < 4 ? F : 4, kChunks = F / V;
  const uint32_t epoch = clock->epoch + static_cast<uint32_t>(offset);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, slot = index / kChunks;
  if (slot >= lazy.counts[epoch % 4]) return;
  const int chunk = static_cast<int>(index % kChunks);
  const int64_t entry = lazy.lists[epoch % 2 * lazy.max_count + slot], place = entry * F + chunk * V;
  const Floats<V> grad = take_gradient<F, V>(lazy, slot, chunk);
  if (d_params) {
    store_floats<V>(d_params + place, grad);
    return;
  }
  const int32_t step = clock->step + offset;
  const AdamStep factors = lazy.steps[step];
  Floats<V> p = load_floats<V>(lazy.params + place), m = load_floats<V>(lazy.exp_avg + place),
            v = load_floats<V>(lazy.exp_avg_sq + place);
#pragma unroll
  for (int i = 0; i < V; ++i) adam_step(lazy.constants, factors, grad.x[i], p.x[i], m.x[i], v.x[i]);
  store_floats<V>(lazy.params + place, p);
  store_floats<V>(lazy.exp_avg + place, m);
  store_floats<V>(lazy.exp_avg_sq + place, v);
  if (chunk == 0) lazy.last_step[entry] = step + 1;
}

Launch flat_launch(int64_t count, cudaStream_t stream) {
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(count, kThreads)));
  how.block = dim3(kThreads);
  how.stream = stream;
  return how;
}

// Calls visit with the features a level as a compile-time constant.
template <class Visit>
Status for_features(const LazyGrid& lazy, Visit&& visit) {
  switch (lazy.grid.n_features) {
    case 1: return visit(std::integral_constant<int, 1>());
    case 2: return visit(std::integral_constant<int, 2>());
    case 4: return visit(std::integral_constant<int, 4>());
    default: return visit(std::integral_constant<int, 8>());
  }
}
int64_t chunks_of(const LazyGrid& lazy) { return lazy.grid.n_features == 8 ? 2 : 1; }

}  // namespace

int64_t lazy_grid_max_count(const HashGrid& grid, int64_t batch) {
  int64_t count = 0;
  for (int l = 0; l < grid.n_levels; ++l) {
    const int64_t reads = batch * grid.n_corners(), entries = grid.levels[l].entries;
    count += reads < entries ? reads : entries;
  }
  return count;
}

Status lazy_grid_begin(const LazyGrid& lazy, FitClock* clock, cudaStream_t stream) {
  Launch how;
  how.grid = dim3(1);
  how.block = dim3(4);
  how.stream = stream;
  return launch("lazy_grid_begin", lazy_grid_begin_kernel, how, clock, lazy.counts);
}

Status lazy_grid_prepare(const LazyGrid& lazy, const Bank& bank, const Batch& batch, int offset, cudaStream_t stream) {
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(batch.n, kPointsPerBlock)), static_cast<unsigned>(lazy.grid.n_levels));
  how.block = dim3(kThreads);
  how.shared_bytes = sizeof(Found);
  how.stream = stream;
  return for_features(lazy, [&](auto f) {
    return launch("lazy_grid_prepare", lazy_grid_prepare_kernel<f.value>, how, lazy, bank, batch, offset);
  });
}

Status lazy_grid_sweep(const LazyGrid& lazy, const FitClock* clock, int offset, cudaStream_t stream) {
  return for_features(lazy, [&](auto f) {
    return launch("lazy_grid_sweep", lazy_grid_sweep_kernel<f.value, false>,
                  flat_launch(lazy.window * chunks_of(lazy), stream), lazy, clock, offset, int64_t{lazy.window});
  });
}

Status lazy_grid_flush(const LazyGrid& lazy, const FitClock* clock, cudaStream_t stream) {
  return for_features(lazy, [&](auto f) {
    return launch("lazy_grid_flush", lazy_grid_sweep_kernel<f.value, true>,
                  flat_launch(lazy.grid.entries * chunks_of(lazy), stream), lazy, clock, 0, lazy.grid.entries);
  });
}

Status lazy_grid_update(const LazyGrid& lazy, const FitClock* clock, int offset, cudaStream_t stream) {
  return for_features(lazy, [&](auto f) {
    return launch("lazy_grid_update", lazy_grid_update_kernel<f.value>,
                  flat_launch(lazy.max_count * chunks_of(lazy), stream), lazy, clock, offset,
                  static_cast<float*>(nullptr));
  });
}

Status lazy_grid_gradients(const LazyGrid& lazy, const FitClock* clock, float* d_params, cudaStream_t stream) {
  DVT_CUDA(cudaMemsetAsync(d_params, 0, static_cast<size_t>(lazy.grid.n_params()) * sizeof(float), stream),
           "clearing gradients of the hash grid");
  return for_features(lazy, [&](auto f) {
    return launch("lazy_grid_gradients", lazy_grid_update_kernel<f.value>,
                  flat_launch(lazy.max_count * chunks_of(lazy), stream), lazy, clock, 0, d_params);
  });
}

}  // namespace dvt::cuda

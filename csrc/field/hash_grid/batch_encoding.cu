// The encoding of a fit's batch, and its gradient's way back to the entries.
//
// A thread takes a row, a level and up to four features, as in hash_grid.cu; the entries that it reads are up to date
// and have slots for their gradients (lazy_grid.cu). Bytes a step at the official size: 131,072 corners x 32 are read
// (4.2 MB) and, backward, added to (2.6 MB of slots, which stay in L2, by 262,144 vector reductions on sm_90).
#include "cuda/runtime.h"
#include "field/features/batch.cuh"
#include "field/hash_grid/hash_grid.cuh"
#include "field/hash_grid/lazy_grid_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 128;

template <class Out, int V>
DVT_DEVICE void store_encoding(Out* to, const Floats<V>& v) {
  if constexpr (V == 4) {
    store_operands(to, make_float4(v.x[0], v.x[1], v.x[2], v.x[3]));
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = from_float<Out>(v.x[i]);
  }
}

template <class Out, int V>
__global__ void __launch_bounds__(kThreads)
    lazy_grid_forward_kernel(LazyGrid lazy, Bank bank, Batch batch, int offset, Out* out, int64_t ld, int64_t* rows,
                             int32_t* patch) {
  const int chunks = lazy.grid.n_features / V, chunk = static_cast<int>(threadIdx.x) % chunks;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / chunks) + threadIdx.x / chunks;
  if (i >= batch.n) return;
  const int l = static_cast<int>(blockIdx.y);
  const HashGridLevel level = lazy.grid.levels[l];
  const int64_t row = sample_of(batch, bank.rows, i, offset);
  if (l == 0 && chunk == 0) {
    rows[i] = row;
    patch[i] = static_cast<int32_t>(row % bank.patches);
  }
  const Cell<2> cell(level, bank.coords + 2 * row);
  store_encoding<Out, V>(out + i * ld + l * lazy.grid.n_features + chunk * V,
                         encode_cell<2, V>(level, cell, lazy.params, lazy.grid.n_features, chunk));
}

template <int V, bool kFixed>
__global__ void __launch_bounds__(kThreads)
    lazy_grid_backward_kernel(LazyGrid lazy, Bank bank, Batch batch, int offset, const float* d_out, int64_t ld,
                              const int64_t* rows) {
  const int chunks = lazy.grid.n_features / V, chunk = static_cast<int>(threadIdx.x) % chunks;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / chunks) + threadIdx.x / chunks;
  if (i >= batch.n) return;
  const int l = static_cast<int>(blockIdx.y);
  const HashGridLevel level = lazy.grid.levels[l];
  const Cell<2> cell(level, bank.coords + 2 * rows[i]);
  const uint32_t odd = (batch.clock->epoch + static_cast<uint32_t>(offset)) % 2;
  const Floats<V> d = load_floats<V>(d_out + i * ld + l * lazy.grid.n_features + chunk * V);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int64_t slot = lazy.slots[odd * lazy.grid.entries + cell.entry(level, c)];
    const int64_t at = slot * lazy.grid.n_features + chunk * V;
    if constexpr (kFixed)
      add_gradient<V>(lazy.fixed_grads + at, d, cell.weight(c), FixedPoint{lazy.fixed_scale, lazy.fixed_limit});
    else
      add_gradient<V>(lazy.grads + at, d, cell.weight(c));
  }
}

template <class Visit>
Status for_width(const LazyGrid& lazy, Visit&& visit) {
  switch (lazy.grid.n_features) {
    case 1: return visit(std::integral_constant<int, 1>());
    case 2: return visit(std::integral_constant<int, 2>());
    default: return visit(std::integral_constant<int, 4>());
  }
}

Launch points_launch(const LazyGrid& lazy, int v, int64_t n, cudaStream_t stream) {
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(n, kThreads / (lazy.grid.n_features / v))),
                  static_cast<unsigned>(lazy.grid.n_levels));
  how.block = dim3(kThreads);
  how.stream = stream;
  return how;
}

}  // namespace

Status lazy_grid_forward(const LazyGrid& lazy, const Bank& bank, const Batch& batch, int offset, Operand operand,
                         void* out, int64_t ld, int64_t* rows, int32_t* patch, cudaStream_t stream) {
  return for_operand(operand, [&](auto* type) {
    using Out = std::remove_pointer_t<decltype(type)>;
    return for_width(lazy, [&](auto v) {
      return launch("lazy_grid_forward", lazy_grid_forward_kernel<Out, v.value>,
                    points_launch(lazy, v.value, batch.n, stream), lazy, bank, batch, offset, static_cast<Out*>(out),
                    ld, rows, patch);
    });
  });
}

Status lazy_grid_backward(const LazyGrid& lazy, const Bank& bank, const Batch& batch, int offset, const float* d_out,
                          int64_t ld, const int64_t* rows, cudaStream_t stream) {
  return for_width(lazy, [&](auto v) {
    return launch("lazy_grid_backward",
                  lazy.fixed() ? lazy_grid_backward_kernel<v.value, true> : lazy_grid_backward_kernel<v.value, false>,
                  points_launch(lazy, v.value, batch.n, stream), lazy, bank, batch, offset, d_out, ld, rows);
  });
}

}  // namespace dvt::cuda

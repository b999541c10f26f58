// The hash grid as a module: encoding and its two gradients, any number of dimensions, levels and features.
//
// A thread takes a point, a level and up to four features: the warp has one level, so its table and sizes are uniform,
// and a corner is one load of 16 bytes. Bytes: 2^D corners of 4 F bytes a point and level are read at random (256 MB a
// million points of 16 levels in 2D with F = 2), 4 F written; the memory's random reads are the limit.
#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "field/hash_grid/hash_grid.cuh"
#include "field/hash_grid/hash_grid_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 128;

// Threads of a block are points times chunks of V features; blockIdx.y is the level.
template <int D, int V>
__global__ void hash_grid_forward_kernel(HashGrid grid, const float* coords, const float* params, int64_t n,
                                         float* out) {
  const int chunks = grid.n_features / V;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / chunks) + threadIdx.x / chunks;
  if (i >= n) return;
  const int chunk = static_cast<int>(threadIdx.x) % chunks, l = static_cast<int>(blockIdx.y);
  const HashGridLevel level = grid.levels[l];
  const Cell<D> cell(level, coords + i * D);
  store_floats<V>(out + (i * grid.n_levels + l) * grid.n_features + chunk * V,
                  encode_cell<D, V>(level, cell, params, grid.n_features, chunk));
}

// Units for sums of at most `count` addends, none larger than `largest`.
DVT_DEVICE FixedPoint fixed_point(float largest, int64_t count) {
  int exponent;
  frexpf(fmaxf(largest, 1e-30f), &exponent);
  int bits = 61;
  while (bits > 0 && count > 0) count >>= 1, --bits;
  const int units = min(bits - exponent, 120);
  return {ldexpf(1.0f, units), ldexpf(1.0f, bits)};
}

template <int D, int V, bool kFixed>
__global__ void hash_grid_backward_params_kernel(HashGrid grid, const float* coords, const float* d_out, int64_t n,
                                                 float* d_params, unsigned long long* sums, const uint32_t* largest) {
  const int chunks = grid.n_features / V;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / chunks) + threadIdx.x / chunks;
  if (i >= n) return;
  const int chunk = static_cast<int>(threadIdx.x) % chunks, l = static_cast<int>(blockIdx.y);
  const HashGridLevel level = grid.levels[l];
  const Cell<D> cell(level, coords + i * D);
  const Floats<V> d = load_floats<V>(d_out + (i * grid.n_levels + l) * grid.n_features + chunk * V);
#pragma unroll
  for (int c = 0; c < 1 << D; ++c) {
    const int64_t at = static_cast<int64_t>(cell.entry(level, c)) * grid.n_features + chunk * V;
    if constexpr (kFixed)
      add_gradient<V>(sums + at, d, cell.weight(c), fixed_point(__uint_as_float(*largest), n << D));
    else
      add_gradient<V>(d_params + at, d, cell.weight(c));
  }
}

// The largest magnitude of x [n], as a float's bits, which order as the floats do.
__global__ void largest_kernel(const float* x, int64_t n, uint32_t* largest) {
  float mine = 0.0f;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    mine = fmaxf(mine, fabsf(x[i]));
  for (int step = 16; step > 0; step >>= 1) mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, step));
  if (ptx::lane_id() == 0) atomicMax(largest, __float_as_uint(mine));
}

__global__ void sums_to_float_kernel(const unsigned long long* sums, int64_t count, int64_t addends,
                                     const uint32_t* largest, float* d_params) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const FixedPoint fixed = fixed_point(__uint_as_float(*largest), addends);
  d_params[i] = fixed.to_float(static_cast<long long>(sums[i]));
}

template <int D>
__global__ void hash_grid_backward_coords_kernel(HashGrid grid, const float* coords, const float* params,
                                                 const float* d_out, int64_t n, float* d_coords) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  float d_x[D] = {};
  for (int l = 0; l < grid.n_levels; ++l) {
    const HashGridLevel level = grid.levels[l];
    const Cell<D> cell(level, coords + i * D);
#pragma unroll
    for (int c = 0; c < 1 << D; ++c) {
      const float* p = params + static_cast<int64_t>(cell.entry(level, c)) * grid.n_features;
      const float* d = d_out + (i * grid.n_levels + l) * grid.n_features;
      float dot = 0.0f;
      for (int f = 0; f < grid.n_features; ++f) dot = fmaf(p[f], d[f], dot);
#pragma unroll
      for (int a = 0; a < D; ++a) {
        float slope = c >> a & 1 ? level.scale : -level.scale;
#pragma unroll
        for (int b = 0; b < D; ++b)
          if (b != a) slope *= c >> b & 1 ? cell.fraction[b] : 1.0f - cell.fraction[b];
        d_x[a] = fmaf(slope, dot, d_x[a]);
      }
    }
  }
#pragma unroll
  for (int a = 0; a < D; ++a) d_coords[i * D + a] = d_x[a];
}

Launch points_launch(const HashGrid& grid, int v, int64_t n, cudaStream_t stream) {
  Launch how;
  how.grid =
      dim3(static_cast<unsigned>(ceil_div(n, kThreads / (grid.n_features / v))), static_cast<unsigned>(grid.n_levels));
  how.block = dim3(kThreads);
  how.stream = stream;
  return how;
}
Launch flat_launch(int64_t count, cudaStream_t stream) {
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(count, kThreads)));
  how.block = dim3(kThreads);
  how.stream = stream;
  return how;
}

// Calls visit with the dimensions and the floats of a load as compile-time constants.
template <class Visit>
Status for_shape(const HashGrid& grid, Visit&& visit) {
  const auto width = [&](auto dims) {
    switch (grid.n_features) {
      case 1: return visit(dims, std::integral_constant<int, 1>());
      case 2: return visit(dims, std::integral_constant<int, 2>());
      default: return visit(dims, std::integral_constant<int, 4>());
    }
  };
  return grid.n_dims == 2 ? width(std::integral_constant<int, 2>()) : width(std::integral_constant<int, 3>());
}

Status check_aligned(const void* p, const char* name) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0)
    return invalid_argument(name, " must be aligned to 16 bytes, got an address that is ",
                            reinterpret_cast<uintptr_t>(p) % 16, " bytes beyond");
  return Status();
}

}  // namespace

Status hash_grid_forward(const HashGrid& grid, const float* coords, const float* params, int64_t n, float* out,
                         cudaStream_t stream) {
  if (n <= 0) return Status();
  DVT_RETURN_IF_ERROR(check_aligned(params, "params"));
  DVT_RETURN_IF_ERROR(check_aligned(out, "out"));
  return for_shape(grid, [&](auto dims, auto v) {
    return launch("hash_grid_forward", hash_grid_forward_kernel<dims.value, v.value>,
                  points_launch(grid, v.value, n, stream), grid, coords, params, n, out);
  });
}

int64_t hash_grid_workspace(const HashGrid& grid) { return grid.n_params() * 8 + 8; }

Status hash_grid_backward_params(const HashGrid& grid, const float* coords, const float* d_out, int64_t n,
                                 float* d_params, void* workspace, cudaStream_t stream) {
  DVT_RETURN_IF_ERROR(check_aligned(d_params, "d_params"));
  DVT_RETURN_IF_ERROR(check_aligned(d_out, "d_out"));
  auto* sums = static_cast<unsigned long long*>(workspace);
  if (!workspace || n <= 0) {
    DVT_CUDA(cudaMemsetAsync(d_params, 0, static_cast<size_t>(grid.n_params()) * sizeof(float), stream),
             "clearing gradients of the hash grid");
    if (n <= 0) return Status();
    return for_shape(grid, [&](auto dims, auto v) {
      return launch("hash_grid_backward_params", hash_grid_backward_params_kernel<dims.value, v.value, false>,
                    points_launch(grid, v.value, n, stream), grid, coords, d_out, n, d_params, sums,
                    static_cast<const uint32_t*>(nullptr));
    });
  }
  DVT_CUDA(cudaMemsetAsync(workspace, 0, static_cast<size_t>(hash_grid_workspace(grid)), stream),
           "clearing gradients of the hash grid");
  auto* largest = reinterpret_cast<uint32_t*>(sums + grid.n_params());
  Launch all = flat_launch(n * grid.n_outputs(), stream);
  if (all.grid.x > 1024) all.grid.x = 1024;
  DVT_RETURN_IF_ERROR(launch("hash_grid_backward_params", largest_kernel, all, d_out, n * grid.n_outputs(), largest));
  DVT_RETURN_IF_ERROR(for_shape(grid, [&](auto dims, auto v) {
    return launch("hash_grid_backward_params", hash_grid_backward_params_kernel<dims.value, v.value, true>,
                  points_launch(grid, v.value, n, stream), grid, coords, d_out, n, d_params, sums, largest);
  }));
  return launch("hash_grid_backward_params", sums_to_float_kernel, flat_launch(grid.n_params(), stream), sums,
                grid.n_params(), n << grid.n_dims, largest, d_params);
}

Status hash_grid_backward_coords(const HashGrid& grid, const float* coords, const float* params, const float* d_out,
                                 int64_t n, float* d_coords, cudaStream_t stream) {
  if (n <= 0) return Status();
  return launch("hash_grid_backward_coords",
                grid.n_dims == 2 ? hash_grid_backward_coords_kernel<2> : hash_grid_backward_coords_kernel<3>,
                flat_launch(n, stream), grid, coords, params, d_out, n, d_coords);
}

namespace {

// numbers: n_input_dims, n_levels, n_features_per_level, log2_hashmap_size, base_resolution, per_level_scale.
Status grid_of(const OpCall& call, HashGrid* grid) {
  HashGridConfig config;
  config.n_dims = static_cast<int>(call.number("n_input_dims", 2));
  config.n_levels = static_cast<int>(call.number("n_levels"));
  config.n_features_per_level = static_cast<int>(call.number("n_features_per_level"));
  config.log2_hashmap_size = static_cast<int>(call.number("log2_hashmap_size"));
  config.base_resolution = static_cast<int>(call.number("base_resolution"));
  config.per_level_scale = static_cast<float>(call.number("per_level_scale"));
  return make_hash_grid(config, grid);
}

// coords [N, D], params [entries * F] -> out [N, L * F].
Status forward_op(OpCall& call) {
  HashGrid grid;
  const OpTensor *coords, *params, *out;
  DVT_RETURN_IF_ERROR(grid_of(call, &grid));
  DVT_RETURN_IF_ERROR(call.tensor("coords", OpType::float32, &coords));
  DVT_RETURN_IF_ERROR(call.tensor("params", OpType::float32, &params));
  DVT_RETURN_IF_ERROR(call.tensor("out", OpType::float32, &out));
  return hash_grid_forward(grid, coords->as<float>(), params->as<float>(), coords->shape[0], out->as<float>(),
                           static_cast<cudaStream_t>(call.stream));
}

// coords, d_out -> d_params; in fixed point with a tensor `workspace`.
Status backward_params_op(OpCall& call) {
  HashGrid grid;
  const OpTensor *coords, *d_out, *d_params, *workspace = nullptr;
  DVT_RETURN_IF_ERROR(grid_of(call, &grid));
  DVT_RETURN_IF_ERROR(call.tensor("coords", OpType::float32, &coords));
  DVT_RETURN_IF_ERROR(call.tensor("d_out", OpType::float32, &d_out));
  DVT_RETURN_IF_ERROR(call.tensor("d_params", OpType::float32, &d_params));
  if (call.has("workspace")) DVT_RETURN_IF_ERROR(call.tensor("workspace", OpType::int64, &workspace));
  if (workspace && workspace->count() * 8 < hash_grid_workspace(grid))
    return invalid_argument("workspace must have ", hash_grid_workspace(grid), " bytes, got ", workspace->count() * 8);
  return hash_grid_backward_params(grid, coords->as<float>(), d_out->as<float>(), coords->shape[0],
                                   d_params->as<float>(), workspace ? workspace->data : nullptr,
                                   static_cast<cudaStream_t>(call.stream));
}

// coords, params, d_out -> d_coords [N, D].
Status backward_coords_op(OpCall& call) {
  HashGrid grid;
  const OpTensor *coords, *params, *d_out, *d_coords;
  DVT_RETURN_IF_ERROR(grid_of(call, &grid));
  DVT_RETURN_IF_ERROR(call.tensor("coords", OpType::float32, &coords));
  DVT_RETURN_IF_ERROR(call.tensor("params", OpType::float32, &params));
  DVT_RETURN_IF_ERROR(call.tensor("d_out", OpType::float32, &d_out));
  DVT_RETURN_IF_ERROR(call.tensor("d_coords", OpType::float32, &d_coords));
  return hash_grid_backward_coords(grid, coords->as<float>(), params->as<float>(), d_out->as<float>(), coords->shape[0],
                                   d_coords->as<float>(), static_cast<cudaStream_t>(call.stream));
}

}  // namespace

DVT_CUDA_OP("hash_grid_forward", forward_op)
DVT_CUDA_OP("hash_grid_backward_params", backward_params_op)
DVT_CUDA_OP("hash_grid_backward_coords", backward_coords_op)

}  // namespace dvt::cuda

#include "field/direct_solver/direct_cg.h"

#include <algorithm>

#include "field/bilinear_grid/bilinear_device.cuh"

namespace dvt::cuda {
namespace {

constexpr int kDegree = 6;              // of the Chebyshev polynomial
constexpr float kEigenvalueRatio = 20;  // between the ends of its interval
constexpr float kLargestDirection = 16;
constexpr int kSums = 4;

// One node of the channels that a block owns.
template <int kWidth>
struct alignas(4 * kWidth) Values {
  float v[kWidth];
};

template <int kWidth>
DVT_DEVICE Values<kWidth> zero_values() {
  Values<kWidth> z;
  for (int k = 0; k < kWidth; ++k) z.v[k] = 0;
  return z;
}

struct Coefficients {
  float right, lower_left, lower, lower_right;
};
DVT_DEVICE Coefficients load_coefficients(const float* p) {
  const float4 v = *reinterpret_cast<const float4*>(p);
  return {v.x, v.y, v.z, v.w};
}
DVT_DEVICE Coefficients load_coefficients(const f16* p) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  const float2 a = unpack2<f16>(v.x), b = unpack2<f16>(v.y);
  return {a.x, a.y, b.x, b.y};
}

// Calls body(node, x[node], sum over the neighbours of coefficient * x) for every node, which belongs to one thread. A
// thread goes down a column and keeps three rows of three nodes. x and coefficients have zeros around them.
template <int kWidth, class C, class Body>
DVT_DEVICE void for_stencil(GridShape grid, const C* coefficients, const Values<kWidth>* x, const Body& body) {
  using V = Values<kWidth>;
  const int nx = static_cast<int>(grid.nx), ny = static_cast<int>(grid.ny), threads = blockDim.x;
  const int pieces = max(1, min(ny, threads / nx)), rows = (ny + pieces - 1) / pieces;
  for (int item = threadIdx.x; item < pieces * nx; item += threads) {
    const int column = item % nx, from = item / nx * rows, to = min(ny, from + rows);
    if (from >= to) continue;
    int node = from * nx + column;
    V ul = x[node - nx - 1], uc = x[node - nx], ur = x[node - nx + 1];
    V ml = x[node - 1], mc = x[node], mr = x[node + 1];
    float upper = to_float(coefficients[4 * (node - nx) + 2]);
    for (int row = from; row < to; ++row, node += nx) {
      const V dl = x[node + nx - 1], dc = x[node + nx], dr = x[node + nx + 1];
      const Coefficients k = load_coefficients(coefficients + 4 * node);
      const float left = to_float(coefficients[4 * (node - 1)]);
      const float upper_right = to_float(coefficients[4 * (node - nx + 1) + 1]);
      const float upper_left = to_float(coefficients[4 * (node - nx - 1) + 3]);
      V sum;
#pragma unroll
      for (int w = 0; w < kWidth; ++w)
        sum.v[w] = k.right * mr.v[w] + left * ml.v[w] + k.lower * dc.v[w] + upper * uc.v[w] + k.lower_right * dr.v[w] +
                   upper_left * ul.v[w] + k.lower_left * dl.v[w] + upper_right * ur.v[w];
      body(node, mc, sum);
      ul = ml, uc = mc, ur = mr, ml = dl, mc = dc, mr = dr;
      upper = k.lower;
    }
  }
}

// The block's two arrays over nodes, in shared memory or, for large grids, in its own part of the scratch.
template <int kWidth>
struct Buffers {
  Values<kWidth>* a;
  Values<kWidth>* b;
};
template <int kWidth>
DVT_DEVICE Buffers<kWidth> buffers(const CgVectors& s, float* sums) {
  const int64_t pad = s.stencil.grid.nx + 1, length = nodes_of(s.stencil.grid) + 2 * pad;
  Values<kWidth>* base = s.scratch ? reinterpret_cast<Values<kWidth>*>(s.scratch) + 2 * length * blockIdx.x
                                   : reinterpret_cast<Values<kWidth>*>(sums + kSums * 34);
  for (int64_t i = threadIdx.x; i < pad; i += blockDim.x) {
    base[i] = base[length - 1 - i] = zero_values<kWidth>();
    base[length + i] = base[2 * length - 1 - i] = zero_values<kWidth>();
  }
  return {base + pad, base + length + pad};
}

// z = Chebyshev(S K S) r: z_1 = r / theta, z_(k+1) = z_k + rho rho' (z_k - z_(k-1)) + 2 rho' / delta (r - S K S z_k).
// From a barrier to one, after which z is in one of the buffers, which is returned; the other is free.
template <int kWidth>
DVT_DEVICE Values<kWidth>* precondition(const CgVectors& s, const float* r, Buffers<kWidth> buffer) {
  const GridShape grid = s.stencil.grid;
  const int nodes = static_cast<int>(nodes_of(grid));
  const float high = *s.stencil.bound, low = high / kEigenvalueRatio;
  const float theta = (high + low) / 2, delta = (high - low) / 2, sigma = theta / delta;
  float rho = 1 / sigma;
  Values<kWidth>*z = buffer.a, *before = buffer.b;
  for (int i = threadIdx.x; i < nodes; i += blockDim.x) {
#pragma unroll
    for (int w = 0; w < kWidth; ++w) z[i].v[w] = r[w * s.stride + i] / theta;
    before[i] = zero_values<kWidth>();
  }
  __syncthreads();
  const f16* rounded = reinterpret_cast<const f16*>(s.stencil.rounded) + 4 * (grid.nx + 1);
  for (int k = 1; k < kDegree; ++k) {
    const float next = 1 / (2 * sigma - rho), momentum = next * rho, step = 2 * next / delta;
    rho = next;
    for_stencil<kWidth>(grid, rounded, z, [&](int node, const Values<kWidth>& x, const Values<kWidth>& sum) {
      Values<kWidth> y = before[node];
#pragma unroll
      for (int w = 0; w < kWidth; ++w)
        y.v[w] = x.v[w] + momentum * (x.v[w] - y.v[w]) + step * (r[w * s.stride + node] - x.v[w] - sum.v[w]);
      before[node] = y;
    });
    __syncthreads();
    Values<kWidth>* swap = z;
    z = before, before = swap;
  }
  return z;
}

// A power of two that brings numbers of at most `largest` to at most twice kLargestDirection.
DVT_DEVICE float direction_scale(float largest) {
  if (!(largest > 0) || largest > 3e38f) return 1;
  const uint32_t exponent = __float_as_uint(largest) & 0x7f800000u;
  return fmaxf(__uint_as_float(exponent) / kLargestDirection, 1e-37f);
}

// p = the direction in v, rounded to float16; `largest` of this thread's.
template <int kWidth>
DVT_DEVICE void store_direction(const CgVectors& s, int64_t channel, const Values<kWidth>* v,
                                const float (&largest)[kWidth], float* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  float scale[kWidth];
  for (int w = 0; w < kWidth; ++w) {
    float m = largest[w];
    for (int step = 16; step > 0; step /= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, step));
    if (lane == 0) sums[warp * kWidth + w] = m;
  }
  __syncthreads();
  for (int w = 0; w < kWidth; ++w) {
    float m = 0;
    for (int i = 0; i < warps; ++i) m = fmaxf(m, sums[i * kWidth + w]);
    scale[w] = direction_scale(m);
    if (threadIdx.x == 0) s.p_scale[channel + w] = scale[w];
    scale[w] = 1 / scale[w];
  }
  const int nodes = static_cast<int>(nodes_of(s.stencil.grid));
  f16* p = reinterpret_cast<f16*>(s.p) + channel * s.stride;
  for (int i = threadIdx.x; i < nodes; i += blockDim.x)
    for (int w = 0; w < kWidth; ++w) p[w * s.stride + i] = from_float<f16>(v[i].v[w] * scale[w]);
}

// A channel whose numbers have left float32 ends here, and its solution says so.
template <int kWidth>
DVT_DEVICE void give_up(const CgVectors& s, int64_t channel, const float (&rz)[kWidth]) {
  const int nodes = static_cast<int>(nodes_of(s.stencil.grid));
  for (int w = 0; w < kWidth; ++w) {
    if (rz[w] * 0.0f == 0.0f) continue;
    for (int i = threadIdx.x; i < nodes; i += blockDim.x) s.x[(channel + w) * s.stride + i] = rz[w] * 0.0f;
  }
}

template <int kWidth>
__global__ void __launch_bounds__(1024) cg_start_kernel(CgVectors s, bool from_guess, float tolerance) {
  float* sums = &ptx::shared<float>();
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWidth;
  const int nodes = static_cast<int>(nodes_of(s.stencil.grid));
  float* x = s.x + channel * s.stride;
  const float* r = s.r + channel * s.stride;
  const Buffers<kWidth> buffer = buffers<kWidth>(s, sums);
  Values<kWidth>* z = precondition(s, r, buffer);
  float dot[kWidth] = {}, largest[kWidth] = {};
  for (int i = threadIdx.x; i < nodes; i += blockDim.x)
    for (int w = 0; w < kWidth; ++w) {
      dot[w] += r[w * s.stride + i] * z[i].v[w];
      float& guess = x[w * s.stride + i];
      if (from_guess) z[i].v[w] = guess;
      guess = 0;
      largest[w] = fmaxf(largest[w], fabsf(z[i].v[w]));
    }
  block_sum(dot, sums);
  store_direction(s, channel, z, largest, sums);
  give_up(s, channel, dot);
  if (threadIdx.x == 0)
    for (int w = 0; w < kWidth; ++w) {
      const bool active = dot[w] > 0 && dot[w] * 0.0f == 0.0f;
      s.rz[channel + w] = dot[w];
      s.target[channel + w] = tolerance * tolerance * dot[w];
      s.done[channel + w] = !active;
      if (active) atomicAdd(&s.state->active, 1u);
    }
}

template <int kWidth>
__global__ void __launch_bounds__(1024) cg_step_kernel(CgVectors s, bool whole_step, uint32_t number) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWidth;
  bool all_done = true;
  for (int w = 0; w < kWidth; ++w) all_done = all_done && s.done[channel + w];
  if (all_done) return;
  float* sums = &ptx::shared<float>();
  const GridShape grid = s.stencil.grid;
  const int nodes = static_cast<int>(nodes_of(grid));
  float* x = s.x + channel * s.stride;
  float* r = s.r + channel * s.stride;
  const float* u = s.u ? s.u + channel * s.stride : nullptr;
  const f16* direction = reinterpret_cast<const f16*>(s.p) + channel * s.stride;
  const Buffers<kWidth> buffer = buffers<kWidth>(s, sums);
  float scale[kWidth], rz[kWidth];
  for (int w = 0; w < kWidth; ++w) scale[w] = s.p_scale[channel + w], rz[w] = s.rz[channel + w];

  // q = (S K S - E' E'^T) p
  Values<kWidth>*p = buffer.a, *q = buffer.b;
  for (int i = threadIdx.x; i < nodes; i += blockDim.x)
    for (int w = 0; w < kWidth; ++w) p[i].v[w] = to_float(direction[w * s.stride + i]) * scale[w];
  __syncthreads();
  float dots[2 * kWidth] = {};
  const float* coefficients = s.stencil.coefficients + 4 * (grid.nx + 1);
  for_stencil<kWidth>(grid, coefficients, p, [&](int node, const Values<kWidth>& mine, const Values<kWidth>& sum) {
    Values<kWidth> value;
#pragma unroll
    for (int w = 0; w < kWidth; ++w) {
      value.v[w] = mine.v[w] + sum.v[w];
      if (u) value.v[w] -= u[w * s.stride + node];
      dots[2 * w] += mine.v[w] * value.v[w];
      dots[2 * w + 1] += mine.v[w] * r[w * s.stride + node];
    }
    q[node] = value;
  });
  block_sum(dots, sums);
  float alpha[kWidth];
  for (int w = 0; w < kWidth; ++w)
    alpha[w] = s.done[channel + w] ? 0.0f : whole_step ? 1.0f : dots[2 * w] > 0 ? dots[2 * w + 1] / dots[2 * w] : 0.0f;
  for (int i = threadIdx.x; i < nodes; i += blockDim.x)
    for (int w = 0; w < kWidth; ++w) {
      x[w * s.stride + i] += alpha[w] * p[i].v[w];
      r[w * s.stride + i] -= alpha[w] * q[i].v[w];
    }
  __syncthreads();

  Values<kWidth>* z = precondition(s, r, buffer);
  float next[kWidth] = {}, beta[kWidth], largest[kWidth] = {};
  for (int i = threadIdx.x; i < nodes; i += blockDim.x)
    for (int w = 0; w < kWidth; ++w) next[w] += r[w * s.stride + i] * z[i].v[w];
  block_sum(next, sums);
  for (int w = 0; w < kWidth; ++w) beta[w] = !whole_step && rz[w] > 0 ? next[w] / rz[w] : 0.0f;
  for (int i = threadIdx.x; i < nodes; i += blockDim.x)
    for (int w = 0; w < kWidth; ++w) {
      z[i].v[w] += beta[w] * (to_float(direction[w * s.stride + i]) * scale[w]);
      largest[w] = fmaxf(largest[w], fabsf(z[i].v[w]));
    }
  store_direction(s, channel, z, largest, sums);
  give_up(s, channel, next);
  if (threadIdx.x == 0)
    for (int w = 0; w < kWidth; ++w) {
      s.rz[channel + w] = next[w];
      if (!s.done[channel + w] && !(next[w] > s.target[channel + w] && next[w] * 0.0f == 0.0f)) {
        s.done[channel + w] = 1;
        atomicMax(&s.state->iterations, number);
        atomicSub(&s.state->active, 1u);
      }
    }
}

// How many channels a block takes, and with how much shared memory: none of it for the vectors where not even one fits.
struct CgShape {
  int width;
  bool in_shared;
  size_t shared_bytes;
};
Status cg_shape(GridShape grid, CgShape* shape) {
  const DeviceTraits* traits;
  DVT_RETURN_IF_ERROR(current_traits(&traits));
  const size_t fixed = sizeof(float) * kSums * 34;
  const size_t vectors = 2 * sizeof(float) * static_cast<size_t>(grid.nodes() + 2 * (grid.nx + 1));
  for (const int width : {2, 1})
    if (fixed + vectors * static_cast<size_t>(width) <= traits->shared_per_block) {
      *shape = {width, true, fixed + vectors * static_cast<size_t>(width)};
      return Status();
    }
  *shape = {1, false, fixed};
  return Status();
}

template <class Kernel1, class Kernel2, class... Args>
Status launch_cg(const char* name, Kernel1 narrow, Kernel2 wide, const CgVectors& s, cudaStream_t stream,
                 Args... args) {
  CgShape shape;
  DVT_RETURN_IF_ERROR(cg_shape(s.stencil.grid, &shape));
  CgVectors vectors = s;
  if (shape.in_shared) vectors.scratch = nullptr;
  const unsigned threads = s.stencil.grid.nodes() <= 1024 ? 256 : 1024;
  const Launch how = {dim3(static_cast<unsigned>(s.channels / shape.width)), threads, shape.shared_bytes, stream};
  return shape.width == 1 ? launch(name, narrow, how, vectors, args...) : launch(name, wide, how, vectors, args...);
}

}  // namespace

Status cg_scratch_bytes(GridShape grid, int64_t channels, size_t* bytes) {
  CgShape shape;
  DVT_RETURN_IF_ERROR(cg_shape(grid, &shape));
  const int64_t length = grid.nodes() + 2 * (grid.nx + 1);
  *bytes = shape.in_shared ? 0 : 2 * sizeof(float) * static_cast<size_t>(length * channels);
  return Status();
}

Status cg_start(const CgVectors& vectors, bool from_guess, float tolerance, cudaStream_t stream) {
  DVT_CUDA(cudaMemsetAsync(vectors.state, 0, sizeof(CgState), stream), "clearing the state of the iterations");
  return launch_cg("start of the iterations", cg_start_kernel<1>, cg_start_kernel<2>, vectors, stream, from_guess,
                   tolerance);
}

Status cg_step(const CgVectors& vectors, bool whole_step, int number, cudaStream_t stream) {
  return launch_cg("step of the iterations", cg_step_kernel<1>, cg_step_kernel<2>, vectors, stream, whole_step,
                   static_cast<uint32_t>(number));
}

}  // namespace dvt::cuda

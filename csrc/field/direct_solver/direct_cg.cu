#include "field/direct_solver/direct_cg.h"

#include <algorithm>

#include "field/bilinear_grid/bilinear_device.cuh"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 768;           // with 80 registers each
constexpr int kDegree = 6;              // of the Chebyshev polynomial
constexpr float kEigenvalueRatio = 20;  // between the ends of its interval
constexpr float kLargestDirection = 4;  // E'^T p is at most 2 kLargestDirection sqrt(nodes), within float16
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

// The stencil's numbers for one node: its own four and those that three of its neighbours keep for it.
struct Coefficients {
  float right, lower_left, lower, lower_right, left, upper_right, upper_left;
};
DVT_DEVICE Coefficients load_coefficients(const float* p, int node, int nx) {
  const float4 v = *reinterpret_cast<const float4*>(p + 4 * node);
  return {v.x, v.y, v.z, v.w, p[4 * (node - 1)], p[4 * (node - nx + 1) + 1], p[4 * (node - nx - 1) + 3]};
}
DVT_DEVICE Coefficients load_coefficients(const f16* p, int node, int nx) {
  const uint2 v = *reinterpret_cast<const uint2*>(p + 4 * node);
  const float2 a = unpack2<f16>(v.x), b = unpack2<f16>(v.y);
  return {a.x,
          a.y,
          b.x,
          b.y,
          to_float(p[4 * (node - 1)]),
          to_float(p[4 * (node - nx + 1) + 1]),
          to_float(p[4 * (node - nx - 1) + 3])};
}

// Calls body(node, x[node], sum over the neighbours of coefficient * x, load(node)) for every node, which belongs to
// one thread. A thread goes down a column and keeps three rows of three nodes; what comes from global memory is fetched
// a row ahead. x and coefficients have zeros around them.
template <int kWidth, class C, class Load, class Body>
DVT_DEVICE void for_stencil(GridShape grid, const C* coefficients, const Values<kWidth>* x, const Load& load,
                            const Body& body) {
  using V = Values<kWidth>;
  const int nx = static_cast<int>(grid.nx), ny = static_cast<int>(grid.ny), threads = blockDim.x;
  const int pieces = max(1, min(ny, threads / nx)), rows = (ny + pieces - 1) / pieces;
  for (int item = threadIdx.x; item < pieces * nx; item += threads) {
    const int column = item % nx, from = item / nx * rows, to = min(ny, from + rows);
    if (from >= to) continue;
    int node = from * nx + column;
    Coefficients next = load_coefficients(coefficients, node, nx);
    auto loaded_next = load(node);
    float upper = to_float(coefficients[4 * (node - nx) + 2]);
    V ul = x[node - nx - 1], uc = x[node - nx], ur = x[node - nx + 1];
    V ml = x[node - 1], mc = x[node], mr = x[node + 1];
    for (int row = from; row < to; ++row, node += nx) {
      const Coefficients k = next;
      const auto loaded = loaded_next;
      if (row + 1 < to) {
        next = load_coefficients(coefficients, node + nx, nx);
        loaded_next = load(node + nx);
      }
      const V dl = x[node + nx - 1], dc = x[node + nx], dr = x[node + nx + 1];
      V sum;
#pragma unroll
      for (int w = 0; w < kWidth; ++w)
        sum.v[w] = k.right * mr.v[w] + k.left * ml.v[w] + k.lower * dc.v[w] + upper * uc.v[w] +
                   k.lower_right * dr.v[w] + k.upper_left * ul.v[w] + k.lower_left * dl.v[w] + k.upper_right * ur.v[w];
      body(node, mc, sum, loaded);
      ul = ml, uc = mc, ur = mr, ml = dl, mc = dc, mr = dr;
      upper = k.lower;
    }
  }
}

// Calls use(node, load(node)) for every node, with the loads of kAtOnce nodes of a thread on their way together.
template <int kAtOnce, class Load, class Use>
DVT_DEVICE void for_nodes(int nodes, const Load& load, const Use& use) {
  const int threads = blockDim.x;
  for (int first = threadIdx.x; first < nodes; first += kAtOnce * threads) {
    decltype(load(0)) loaded[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * threads < nodes) loaded[k] = load(first + k * threads);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * threads < nodes) use(first + k * threads, loaded[k]);
  }
}

// One node of the channel-major vectors that start at p.
template <int kWidth>
DVT_DEVICE Values<kWidth> read(const float* p, int64_t stride, int node) {
  Values<kWidth> v;
#pragma unroll
  for (int w = 0; w < kWidth; ++w) v.v[w] = p[w * stride + node];
  return v;
}
template <int kWidth>
DVT_DEVICE Values<kWidth> read(const f16* p, int64_t stride, int node) {
  Values<kWidth> v;
#pragma unroll
  for (int w = 0; w < kWidth; ++w) v.v[w] = to_float(p[w * stride + node]);
  return v;
}
template <int kWidth>
struct Pair {
  Values<kWidth> a, b;
};

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
struct Chebyshev {
  float theta, delta;
};
DVT_DEVICE Chebyshev chebyshev(const CgVectors& s) {
  const float high = *s.stencil.bound, low = high / kEigenvalueRatio;
  return {(high + low) / 2, (high - low) / 2};
}
// The caller has put z_1 and z_0 = 0 into the buffers. From a barrier to one, after which z is in the buffer that is
// returned and the other is free; dot gets this thread's part of r z.
template <int kWidth>
DVT_DEVICE Values<kWidth>* precondition(const CgVectors& s, const Chebyshev& c, const float* r, Buffers<kWidth> buffer,
                                        float (&dot)[kWidth]) {
  const float sigma = c.theta / c.delta;
  float rho = 1 / sigma;
  Values<kWidth>*z = buffer.a, *before = buffer.b;
  const f16* rounded = reinterpret_cast<const f16*>(s.stencil.rounded) + 4 * (s.stencil.grid.nx + 1);
  __syncthreads();
#pragma unroll 1
  for (int k = 1; k < kDegree; ++k) {
    const float next = 1 / (2 * sigma - rho), momentum = next * rho, step = 2 * next / c.delta;
    rho = next;
    const bool last = k + 1 == kDegree;
    for_stencil<kWidth>(
        s.stencil.grid, rounded, z, [&](int node) { return read<kWidth>(r, s.stride, node); },
        [&](int node, const Values<kWidth>& x, const Values<kWidth>& sum, const Values<kWidth>& right) {
          Values<kWidth> y = before[node];
#pragma unroll
          for (int w = 0; w < kWidth; ++w) {
            y.v[w] = x.v[w] + momentum * (x.v[w] - y.v[w]) + step * (right.v[w] - x.v[w] - sum.v[w]);
            if (last) dot[w] += right.v[w] * y.v[w];
          }
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
__global__ void __launch_bounds__(kThreads) cg_start_kernel(CgVectors s, bool from_guess, float tolerance) {
  float* sums = &ptx::shared<float>();
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWidth;
  const int nodes = static_cast<int>(nodes_of(s.stencil.grid));
  float* x = s.x + channel * s.stride;
  const float* r = s.r + channel * s.stride;
  const Buffers<kWidth> buffer = buffers<kWidth>(s, sums);
  const Chebyshev c = chebyshev(s);
  for_nodes<4>(
      nodes, [&](int i) { return read<kWidth>(r, s.stride, i); },
      [&](int i, const Values<kWidth>& right) {
        for (int w = 0; w < kWidth; ++w) buffer.a[i].v[w] = right.v[w] / c.theta;
        buffer.b[i] = zero_values<kWidth>();
      });
  float dot[kWidth] = {}, largest[kWidth] = {};
  Values<kWidth>* z = precondition(s, c, r, buffer, dot);
  for_nodes<4>(
      nodes, [&](int i) { return read<kWidth>(x, s.stride, i); },
      [&](int i, const Values<kWidth>& guess) {
        for (int w = 0; w < kWidth; ++w) {
          if (from_guess) z[i].v[w] = guess.v[w];
          x[w * s.stride + i] = 0;
          largest[w] = fmaxf(largest[w], fabsf(z[i].v[w]));
        }
      });
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
__global__ void __launch_bounds__(kThreads) cg_step_kernel(CgVectors s, bool whole_step, uint32_t number) {
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

  // q = (S K S - E' E'^T) p
  Values<kWidth>*p = buffer.a, *q = buffer.b;
  const auto read_direction = [&](int i) { return read<kWidth>(direction, s.stride, i); };
  float scale[kWidth];
  for (int w = 0; w < kWidth; ++w) scale[w] = s.p_scale[channel + w];
  for_nodes<8>(nodes, read_direction, [&](int i, const Values<kWidth>& stored) {
    for (int w = 0; w < kWidth; ++w) p[i].v[w] = stored.v[w] * scale[w];
  });
  __syncthreads();
  float dots[2 * kWidth] = {};
  for_stencil<kWidth>(
      grid, s.stencil.coefficients + 4 * (grid.nx + 1), p,
      [&](int node) {
        return Pair<kWidth>{u ? read<kWidth>(u, s.stride, node) : zero_values<kWidth>(),
                            read<kWidth>(r, s.stride, node)};
      },
      [&](int node, const Values<kWidth>& mine, const Values<kWidth>& sum, const Pair<kWidth>& coupled_and_r) {
        Values<kWidth> value;
#pragma unroll
        for (int w = 0; w < kWidth; ++w) {
          value.v[w] = mine.v[w] + sum.v[w] - coupled_and_r.a.v[w];
          dots[2 * w] += mine.v[w] * value.v[w];
          dots[2 * w + 1] += mine.v[w] * coupled_and_r.b.v[w];
        }
        q[node] = value;
      });
  block_sum(dots, sums);
  float alpha[kWidth];
  for (int w = 0; w < kWidth; ++w)
    alpha[w] = s.done[channel + w] ? 0.0f : whole_step ? 1.0f : dots[2 * w] > 0 ? dots[2 * w + 1] / dots[2 * w] : 0.0f;
  // x and r, and in the place of p and q the start of the polynomial.
  const Chebyshev c = chebyshev(s);
  for_nodes<4>(
      nodes, [&](int i) { return Pair<kWidth>{read<kWidth>(x, s.stride, i), read<kWidth>(r, s.stride, i)}; },
      [&](int i, const Pair<kWidth>& x_and_r) {
        for (int w = 0; w < kWidth; ++w) {
          const float right = x_and_r.b.v[w] - alpha[w] * q[i].v[w];
          x[w * s.stride + i] = x_and_r.a.v[w] + alpha[w] * p[i].v[w];
          r[w * s.stride + i] = right;
          p[i].v[w] = right / c.theta;
        }
        q[i] = zero_values<kWidth>();
      });
  float next[kWidth] = {}, beta[kWidth], largest[kWidth] = {};
  Values<kWidth>* z = precondition(s, c, r, buffer, next);
  block_sum(next, sums);
  for (int w = 0; w < kWidth; ++w) {
    const float rz = s.rz[channel + w];
    beta[w] = !whole_step && rz > 0 ? next[w] / rz * s.p_scale[channel + w] : 0.0f;
  }
  for_nodes<8>(nodes, read_direction, [&](int i, const Values<kWidth>& stored) {
    for (int w = 0; w < kWidth; ++w) {
      z[i].v[w] += beta[w] * stored.v[w];
      largest[w] = fmaxf(largest[w], fabsf(z[i].v[w]));
    }
  });
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
  const unsigned threads = s.stencil.grid.nodes() <= 1024 ? 256 : kThreads;
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

// How threads of a block meet: shuffles, votes, divergence, barriers, atomics, clusters, and all blocks at once.
#include <algorithm>

#include "check.h"

namespace {

using dvt::ptx::shared_memory;

constexpr unsigned kAll = 0xffffffffu;

struct Wide {
  double a;
  int b[3];
};
__global__ void shuffle_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* own = out + lane * 8;
  own[0] = __shfl_sync(kAll, lane, lane + 5);
  own[1] = __shfl_sync(kAll, lane, 3, 8);
  own[2] = __shfl_up_sync(kAll, lane, 2, 16);
  own[3] = __shfl_down_sync(kAll, lane, 2, 16);
  own[4] = __shfl_xor_sync(kAll, lane, 9);
  own[5] = static_cast<int>(__shfl_xor_sync(kAll, static_cast<long long>(lane) << 40, 1) >> 40);
  const Wide wide = __shfl_sync(kAll, Wide{lane * 0.5, {lane, lane, lane * lane}}, 31 - lane);
  own[6] = static_cast<int>(wide.a * 2) + wide.b[2];
  float sum = static_cast<float>(lane);
  for (int flip = 16; flip > 0; flip /= 2) sum += __shfl_xor_sync(kAll, sum, flip);
  own[7] = static_cast<int>(sum);
}
TEST(shuffles) {
  check::Device<int> out(32 * 8);
  EXPECT_EQ(check::run(shuffle_kernel, 1, 32, 0, out.data), cudaSuccess);
  for (int lane = 0; lane < 32; ++lane) {
    const int* own = out.data + lane * 8;
    const int other = 31 - lane;
    EXPECT_EQ(own[0], (lane + 5) % 32);
    EXPECT_EQ(own[1], lane / 8 * 8 + 3);
    EXPECT_EQ(own[2], lane % 16 < 2 ? lane : lane - 2);
    EXPECT_EQ(own[3], lane % 16 > 13 ? lane : lane + 2);
    EXPECT_EQ(own[4], lane ^ 9);
    EXPECT_EQ(own[5], lane ^ 1);
    EXPECT_EQ(own[6], other + other * other);
    EXPECT_EQ(own[7], 31 * 16);
  }
}

__global__ void vote_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x;
  unsigned* own = out + lane * 8;
  own[0] = __ballot_sync(kAll, lane % 3 == 0);
  own[1] = static_cast<unsigned>(__any_sync(kAll, lane == 7) + 2 * __all_sync(kAll, lane < 32));
  own[2] = __match_any_sync(kAll, lane % 5);
  int all = 0;
  own[3] = __match_all_sync(kAll, lane / 32, &all);
  own[4] = __reduce_add_sync(kAll, lane);
  own[5] = static_cast<unsigned>(__reduce_min_sync(kAll, static_cast<int>(lane) - 40));
  own[6] = __reduce_or_sync(kAll, 1u << lane);
  own[7] = __activemask();
}
TEST(votes) {
  check::Device<unsigned> out(32 * 8);
  EXPECT_EQ(check::run(vote_kernel, 1, 32, 0, out.data), cudaSuccess);
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned* own = out.data + lane * 8;
    unsigned thirds = 0, same = 0;
    for (unsigned i = 0; i < 32; ++i) thirds |= (i % 3 == 0 ? 1u : 0u) << i, same |= (i % 5 == lane % 5 ? 1u : 0u) << i;
    EXPECT_EQ(own[0], thirds);
    EXPECT_EQ(own[1], 3u);
    EXPECT_EQ(own[2], same);
    EXPECT_EQ(own[3], kAll);
    EXPECT_EQ(own[4], 496u);
    EXPECT_EQ(static_cast<int>(own[5]), -40);
    EXPECT_EQ(own[6], kAll);
    EXPECT(own[7] >> lane & 1);
  }
}

// Two parts of a warp at different collectives at a time, and lanes that leave early.
__global__ void divergence_kernel(int* out) {
  const unsigned lane = threadIdx.x;
  if (lane >= 28) return;
  int value = static_cast<int>(lane);
  if (lane % 2) {
    for (int i = 0; i < 3; ++i) value = __shfl_xor_sync(0xaaaaaaaau, value, 2);
  } else if (__ballot_sync(0x55555555u, lane < 4) == 0x5u) {
    value += 100;
  }
  __syncwarp();
  out[lane] = value + __shfl_xor_sync(kAll, value, 1);
}
TEST(divergence) {
  check::Device<int> out(32);
  EXPECT_EQ(check::run(divergence_kernel, 1, 32, 0, out.data), cudaSuccess);
  for (int lane = 0; lane < 26; ++lane) {
    const int even = lane & ~1, odd = lane | 1;
    EXPECT_EQ(out[static_cast<size_t>(lane)], even + 100 + (odd ^ 2));
  }
  EXPECT_EQ(out[28], -1);
}

__global__ void barrier_kernel(int* out) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x, n = blockDim.x;
  shared[i] = static_cast<int>(i);
  __syncthreads();
  int sum = shared[n - 1 - i] + __syncthreads_count(i % 3 == 0);
  sum += 1000 * __syncthreads_or(i == 5) + 2000 * __syncthreads_and(i != 5);
  if (i < 64) {  // the first two warps among themselves
    shared[i] += 1;
    dvt::ptx::named_barrier(1, 64);
    sum += shared[63 - i];
  }
  out[blockIdx.x * n + i] = sum;
}
TEST(barriers) {
  check::Device<int> out(5 * 96);
  EXPECT_EQ(check::run(barrier_kernel, 5, 96, 96 * 4, out.data), cudaSuccess);
  for (int i = 0; i < 5 * 96; ++i) {
    const int t = i % 96;
    EXPECT_EQ(out[static_cast<size_t>(i)], 95 - t + 32 + 1000 + (t < 64 ? 64 - t : 0));
  }
}

__global__ void forgotten_barrier_kernel(float* out) {
  auto* shared = reinterpret_cast<float*>(shared_memory());
  shared[threadIdx.x] = 1.0f;
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
TEST(forgotten_barrier_is_seen) {
  check::Device<float> out(128);
  EXPECT_EQ(check::run(forgotten_barrier_kernel, 1, 128, 512, out.data), cudaSuccess);
  EXPECT(std::count_if(out.data, out.data + 128, [](float x) { return x != x; }) > 10);
}

__global__ void copy_kernel(const float4* from, float4* out, bool wait) {
  auto* shared = reinterpret_cast<float4*>(shared_memory());
  const unsigned i = threadIdx.x;
  dvt::ptx::copy_async_16(&shared[i], &from[i]);
  dvt::ptx::copy_async_commit();
  dvt::ptx::copy_async_16(&shared[32 + i], &from[i], i != 3);
  dvt::ptx::copy_async_small<4>(&shared[64 + i].y, &from[i].x);
  dvt::ptx::copy_async_commit();
  if (wait)
    dvt::ptx::copy_async_wait<0>();
  else
    dvt::ptx::copy_async_wait<1>();
  for (unsigned part = 0; part < 3; ++part) out[part * 32 + i] = shared[part * 32 + i];
}
TEST(copies_arrive_when_waited_for) {
  std::vector<float4> from(32);
  for (unsigned i = 0; i < 32; ++i) from[i] = make_float4(static_cast<float>(i), 1.0f, 2.0f, 3.0f);
  check::Device<float4> source(from), out(96);
  EXPECT_EQ(check::run(copy_kernel, 1, 32, 96 * 16, source.data, out.data, true), cudaSuccess);
  for (unsigned i = 0; i < 32; ++i) {
    EXPECT_EQ(out[i].x, static_cast<float>(i));
    EXPECT_EQ(out[32 + i].w, i == 3 ? 0.0f : 3.0f);
    EXPECT_EQ(out[64 + i].y, static_cast<float>(i));
    EXPECT(out[64 + i].x != out[64 + i].x);
  }
  EXPECT_EQ(check::run(copy_kernel, 1, 32, 96 * 16, source.data, out.data, false), cudaSuccess);
  for (unsigned i = 0; i < 32; ++i) {
    EXPECT_EQ(out[i].x, static_cast<float>(i));
    EXPECT(out[32 + i].w != out[32 + i].w);
  }
}

__global__ void atomic_kernel(int* i, unsigned long long* u, float* f, double* d) {
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(i, 1);
  atomicMax(i + 1, t);
  atomicMin(i + 2, -t);
  atomicOr(reinterpret_cast<unsigned*>(i) + 3, 1u << t % 32);
  atomicAdd(u, 1ull << 33);
  atomicAdd(f, 1.0f);
  dvt::ptx::add_global(reinterpret_cast<float*>(f + 4), make_float4(1.0f, 2.0f, 3.0f, 4.0f));
  atomicAdd(d, 0.5);
  for (int old = i[4], seen; (seen = atomicCAS(i + 4, old, old + 2)) != old;) old = seen;
  if (atomicInc(reinterpret_cast<unsigned*>(i) + 5, 255u) == 255u) atomicExch(i + 6, 77);
}
TEST(atomics) {
  check::Device<int> i(std::vector<int>(8));
  check::Device<unsigned long long> u(std::vector<unsigned long long>(1));
  check::Device<float> f(std::vector<float>(8));
  check::Device<double> d(std::vector<double>(1));
  EXPECT_EQ(check::run(atomic_kernel, 8, 32, 0, i.data, u.data, f.data, d.data), cudaSuccess);
  EXPECT_EQ(i[0], 256);
  EXPECT_EQ(i[1], 255);
  EXPECT_EQ(i[2], -255);
  EXPECT_EQ(i[3], -1);
  EXPECT_EQ(i[4], 512);
  EXPECT_EQ(i[5], 0);
  EXPECT_EQ(i[6], 77);
  EXPECT_EQ(u[0], 256ull << 33);
  EXPECT_EQ(f[0], 256.0f);
  EXPECT_EQ(f[7], 1024.0f);
  EXPECT_EQ(d[0], 128.0);
}

__global__ void index_kernel(unsigned* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}
TEST(indices) {
  check::Device<unsigned> out(24 * 60);
  EXPECT_EQ(check::run(index_kernel, dim3(2, 3, 4), dim3(3, 4, 5), 0, out.data), cudaSuccess);
  for (unsigned i = 0; i < 24 * 60; ++i) EXPECT_EQ(out[i], i / 60 * 1000 + i % 60);
}

// Each block waits for its neighbour, twice.
__global__ void cooperative_kernel(unsigned* flags, unsigned* out) {
  const unsigned b = blockIdx.x, next = (b + 1) % gridDim.x;
  for (unsigned round = 1; round <= 2; ++round) {
    __syncthreads();
    if (threadIdx.x == 0) {
      dvt::ptx::add_release(flags + b, 1);
      while (dvt::ptx::load_acquire(flags + next) < round) dvt::ptx::spin_pause();
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) out[b] = b;
}
TEST(cooperative) {
  check::Device<unsigned> flags(std::vector<unsigned>(20)), out(20);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = 20;
  config.blockDim = 64;
  config.attrs = &attribute;
  config.numAttrs = 1;
  EXPECT_EQ(cudaLaunchKernelEx(&config, cooperative_kernel, flags.data, out.data), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (unsigned i = 0; i < 20; ++i) EXPECT_EQ(out[i], i);
  config.gridDim = 132 * 32 + 1;
  EXPECT_EQ(cudaLaunchKernelEx(&config, cooperative_kernel, flags.data, out.data), cudaErrorCooperativeLaunchTooLarge);
}

__global__ void cluster_kernel(unsigned* out) {
  auto* shared = reinterpret_cast<unsigned*>(shared_memory());
  shared[threadIdx.x] = blockIdx.x * 100 + threadIdx.x;
  emulator::cluster_sync();
  const unsigned other = emulator::cluster_rank() ^ 1u;
  out[blockIdx.x * 32 + threadIdx.x] =
      *static_cast<unsigned*>(emulator::in_cluster(shared + threadIdx.x, other, 4, 4, "test"));
  emulator::cluster_sync();
}
TEST(clusters) {
  check::Device<unsigned> out(6 * 32);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = 6;
  config.blockDim = 32;
  config.dynamicSmemBytes = 128;
  config.attrs = &attribute;
  config.numAttrs = 1;
  EXPECT_EQ(cudaLaunchKernelEx(&config, cluster_kernel, out.data), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (unsigned i = 0; i < 6 * 32; ++i) EXPECT_EQ(out[i], (i / 32 ^ 1u) * 100 + i % 32);
  config.gridDim = 5;
  EXPECT_EQ(cudaLaunchKernelEx(&config, cluster_kernel, out.data), cudaErrorInvalidClusterSize);
}

// What execution.h offers to Hopper's instructions.
__global__ void asynchronous_kernel(int* out) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  int& arrived = emulator::block_state<int>();
  if (threadIdx.x == 0) {
    shared[0] = 0;
    __threadfence_block();
    emulator::defer([shared, &arrived] {
      shared[0] = 7;
      arrived = 1;
      emulator::wake(shared);
    });
  }
  emulator::wait_until(shared, [&] { return arrived == 1; }, "a deferred operation");
  struct Arguments {
    int value, sum;
  } own = {static_cast<int>(threadIdx.x), 0};
  emulator::warpgroup_collective(
      [](void* const* all) {
        int sum = 0;
        for (int i = 0; i < 128; ++i) sum += static_cast<Arguments*>(all[i])->value;
        for (int i = 0; i < 128; ++i) static_cast<Arguments*>(all[i])->sum = sum;
      },
      &own, "sum of a warpgroup");
  out[threadIdx.x] = own.sum + shared[0];
}
TEST(asynchronous_operations) {
  check::Device<int> out(256);
  EXPECT_EQ(check::run(asynchronous_kernel, 1, 256, 16, out.data), cudaSuccess);
  for (unsigned i = 0; i < 256; ++i) EXPECT_EQ(out[i], 127 * 64 + (i < 128 ? 0 : 128 * 128) + 7);
}

}  // namespace

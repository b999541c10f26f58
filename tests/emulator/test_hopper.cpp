// Bulk copies, mbarriers and wgmma against their plain definitions, and that they are as late as they may be.
#include <cmath>

#include "check.h"
#include "core/half.h"
#include "cuda/wgmma.cuh"

namespace {

using namespace dvt::ptx;
using dvt::cuda::bf16;
using dvt::cuda::tf32;

float number(unsigned i) { return static_cast<float>(static_cast<int>(i * 2654435761u >> 20) - 2048) / 1024.0f; }

// Shared memory of these kernels: a barrier at 64 KB, tiles before it.
Barrier* barrier_of(char* shared) { return reinterpret_cast<Barrier*>(shared + 65536); }
constexpr size_t kShared = 65536 + 64;

TensorMap map_of(TensorType type, const void* data, std::vector<uint64_t> extents, std::vector<uint32_t> box) {
  TensorMap map;
  std::vector<uint64_t> strides;
  uint64_t stride = type == TensorType::f32 ? 4 : 2;
  for (uint64_t extent : extents) strides.push_back(stride *= extent);
  EXPECT(encode_tensor_map(&map, type, static_cast<uint32_t>(extents.size()), data, extents.data(), strides.data(),
                           box.data()));
  return map;
}

// The box at (c0, c1, c2) of 64 x 16 x 1 16-bit numbers, copied and then read back as it lies in shared memory.
__global__ void tile_kernel(const TensorMap map, uint16_t* out, int c0, int c1, int c2) {
  char* shared = shared_memory();
  Barrier* barrier = barrier_of(shared);
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(barrier, 2048);
    copy_tile(shared + 2048, &map, barrier, c0, c1, c2);
  }
  barrier_wait(barrier, 0);
  for (unsigned i = threadIdx.x; i < 1024; i += 32) out[i] = reinterpret_cast<uint16_t*>(shared + 2048)[i];
}
TEST(tile_swizzle_and_edges) {
  // [3][20][72]: boxes reach over every edge.
  std::vector<uint16_t> data(3 * 20 * 72);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint16_t>(i + 1);
  const TensorMap map = map_of(TensorType::f16, data.data(), {72, 20, 3}, {64, 16, 1});
  for (const auto& c : {std::array<int, 3>{0, 0, 0}, {40, 8, 2}, {-8, -3, 1}, {0, 0, 3}}) {
    check::Device<uint16_t> out(1024);
    EXPECT_EQ(check::run(tile_kernel, 1, 32, kShared, map, out.data, c[0], c[1], c[2]), cudaSuccess);
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 64; ++column) {
        const int x = c[0] + column, y = c[1] + row, z = c[2];
        const bool inside = x >= 0 && x < 72 && y >= 0 && y < 20 && z < 3;
        // Piece p (16 bytes) of row r lies where piece p ^ (r % 8) would.
        const int at = row * 64 + ((column / 8) ^ (row % 8)) * 8 + column % 8;
        EXPECT_EQ(out[static_cast<size_t>(at)], inside ? data[static_cast<size_t>((z * 20 + y) * 72 + x)] : 0);
      }
  }
}

// Back to memory: what lies outside is not written.
__global__ void store_kernel(const TensorMap from, const TensorMap to, int c0, int c1) {
  char* shared = shared_memory();
  Barrier* barrier = barrier_of(shared);
  if (threadIdx.x != 0) return;
  barrier_init(barrier, 1);
  barrier_init_fence();
  barrier_arrive_expect(barrier, 2048);
  copy_tile(shared, &from, barrier, 0, 0);
  barrier_wait(barrier, 0);
  fence_async();
  store_tile(&to, shared, c0, c1);
  store_commit();
  store_wait_read<0>();
}
TEST(tile_store) {
  std::vector<uint16_t> data(16 * 64);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint16_t>(i + 1);
  const TensorMap from = map_of(TensorType::bf16, data.data(), {64, 16}, {64, 16});
  check::Device<uint16_t> out(20 * 80);
  const TensorMap to = map_of(TensorType::bf16, out.data, {80, 20}, {64, 16});
  EXPECT_EQ(check::run(store_kernel, 1, 32, kShared, from, to, 32, 10), cudaSuccess);
  for (size_t row = 0; row < 20; ++row)
    for (size_t column = 0; column < 80; ++column) {
      const bool written = row >= 10 && column >= 32;
      EXPECT_EQ(out[row * 80 + column], written ? data[(row - 10) * 64 + column - 32] : 0xffff);
    }
}

// What stands in shared memory before the phase is over, and after; and the parity of three phases.
__global__ void phases_kernel(const TensorMap map, uint16_t* out) {
  char* shared = shared_memory();
  Barrier* barrier = barrier_of(shared);
  if (threadIdx.x == 0) {
    barrier_init(barrier, 2);
    barrier_init_fence();
  }
  __syncthreads();
  for (uint32_t phase = 0; phase < 3; ++phase) {
    if (threadIdx.x == 0) {
      barrier_arrive_expect(barrier, 2048);
      copy_tile(shared, &map, barrier, 0, static_cast<int>(phase));
      out[2 * phase] = reinterpret_cast<uint16_t*>(shared)[0];
    }
    if (threadIdx.x == 32) barrier_arrive(barrier);
    barrier_wait(barrier, phase & 1);
    if (threadIdx.x == 0) out[2 * phase + 1] = reinterpret_cast<uint16_t*>(shared)[0];
    __syncthreads();
  }
}
TEST(barrier_phases) {
  std::vector<uint16_t> data(20 * 64);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint16_t>(i / 64 + 1);
  const TensorMap map = map_of(TensorType::f16, data.data(), {64, 20}, {64, 16});
  check::Device<uint16_t> out(6);
  EXPECT_EQ(check::run(phases_kernel, 1, 64, kShared, map, out.data), cudaSuccess);
  for (size_t phase = 0; phase < 3; ++phase) {
    EXPECT_EQ(out[2 * phase], 0xffff);
    EXPECT_EQ(out[2 * phase + 1], phase + 1);
  }
}

__global__ void too_many_kernel() {
  Barrier* barrier = barrier_of(shared_memory());
  if (threadIdx.x == 0) barrier_init(barrier, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(barrier, 16);
    barrier_arrive(barrier);
  }
}
TEST(barrier_too_many) { EXPECT_EQ(check::run(too_many_kernel, 1, 32, kShared), cudaErrorIllegalInstruction); }
__global__ void no_init_kernel() { barrier_arrive(barrier_of(shared_memory())); }
TEST(barrier_not_initialised) { EXPECT_EQ(check::run(no_init_kernel, 1, 32, kShared), cudaErrorIllegalInstruction); }
__global__ void never_kernel() {
  Barrier* barrier = barrier_of(shared_memory());
  if (threadIdx.x == 0) barrier_init(barrier, 33);
  __syncthreads();
  barrier_arrive(barrier);
  barrier_wait(barrier, 0);
}
TEST(barrier_never_complete) { EXPECT_EQ(check::run(never_kernel, 1, 32, kShared), cudaErrorLaunchFailure); }

// d = a b: A [64][128 bytes] at 0; B at 16384: K-major [kN][128 bytes], or MN-major, a tile [rows][64] for each 64
// columns. kFrom: steps to skip, which is an offset of the start address.
template <class T, int kN, bool kMnMajor, bool kRegisters>
__global__ void wgmma_kernel(const TensorMap a_map, const TensorMap b_map, float* out, int from, int b_rows) {
  char* shared = shared_memory();
  Barrier* barrier = barrier_of(shared);
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
  }
  __syncthreads();
  constexpr int kBlocks = kMnMajor ? kN / 64 : 1;
  if (threadIdx.x == 0) {
    barrier_arrive_expect(barrier, static_cast<uint32_t>(8192 + kBlocks * b_rows * 128));
    copy_tile(shared, &a_map, barrier, 0, 0);
    for (int block = 0; block < kBlocks; ++block)
      copy_tile(shared + 16384 + block * b_rows * 128, &b_map, barrier, 64 * block, 0);
  }
  barrier_wait(barrier, 0);
  float d[kN / 2];
  const uint64_t a = advance(tile_descriptor(shared), static_cast<uint32_t>(32 * from));
  const uint64_t b = kMnMajor ? advance(tile_descriptor(shared + 16384, 1024, static_cast<uint32_t>(b_rows * 128)),
                                        static_cast<uint32_t>(2048 * from))
                              : advance(tile_descriptor(shared + 16384), static_cast<uint32_t>(32 * from));
  const unsigned warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  hold(d);
  wgmma_fence();
  uint32_t fragment[4];
  if constexpr (kRegisters) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = 16 * warp + group + i % 2 * 8;
      const unsigned column = 16 * static_cast<unsigned>(from) + 2 * quad + i / 2 * 8;
      const unsigned at = row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2;
      fragment[i] = *reinterpret_cast<const uint32_t*>(shared + at);
    }
    Wgmma<T, kMnMajor>::run(d, fragment, b, false);
    Wgmma<T, kMnMajor>::run(d, fragment, b, true);
  } else {
    Wgmma<T, kMnMajor>::run(d, a, b, false);
    Wgmma<T, kMnMajor>::run(d, a, b, true);
  }
  wgmma_commit();
  wgmma_wait<0>();
  hold(d);
  for (unsigned j = 0; j < kN / 8; ++j)
    for (unsigned i = 0; i < 4; ++i)
      out[(16 * warp + group + i / 2 * 8) * kN + 8 * j + 2 * quad + i % 2] = d[4 * j + i];
}

template <class T, int kN, bool kMnMajor, bool kRegisters>
void test_wgmma() {
  constexpr bool kNarrow = sizeof(T) == 2;
  constexpr unsigned kK = 128 / sizeof(T), kStep = 32 / sizeof(T);
  std::vector<float> a(64 * kK), b(static_cast<size_t>(kN) * 64);  // b: [kN][kK] or [64][kN]
  std::vector<uint16_t> a16(a.size()), b16(b.size());
  const auto round = [&](std::vector<float>& values, std::vector<uint16_t>& bits, unsigned seed) {
    for (size_t i = 0; i < values.size(); ++i) {
      bits[i] = dvt::float_to_bfloat16(number(static_cast<unsigned>(i) + seed));
      values[i] = dvt::bfloat16_to_float(bits[i]);  // is a tf32 as well
    }
  };
  round(a, a16, 0);
  round(b, b16, 5000);
  const TensorType type = kNarrow ? TensorType::bf16 : TensorType::f32;
  const void* a_data = kNarrow ? static_cast<const void*>(a16.data()) : a.data();
  const void* b_data = kNarrow ? static_cast<const void*>(b16.data()) : b.data();
  const TensorMap a_map = map_of(type, a_data, {kK, 64}, {kK, 64});
  const TensorMap b_map =
      kMnMajor ? map_of(type, b_data, {kN, 64}, {64, 64}) : map_of(type, b_data, {kK, kN}, {kK, kN});
  for (int from : {0, 2}) {
    check::Device<float> out(static_cast<size_t>(64) * kN);
    EXPECT_EQ(check::run(wgmma_kernel<T, kN, kMnMajor, kRegisters>, 1, 128, kShared, a_map, b_map, out.data, from,
                         kMnMajor ? 64 : kN),
              cudaSuccess);
    for (unsigned row = 0; row < 64; ++row)
      for (unsigned column = 0; column < kN; ++column) {
        double sum = 0;
        for (unsigned k = kStep * static_cast<unsigned>(from); k < kStep * static_cast<unsigned>(from + 1); ++k)
          sum += static_cast<double>(a[row * kK + k]) * (kMnMajor ? b[k * kN + column] : b[column * kK + k]);
        EXPECT(std::fabs(2 * sum - out[row * kN + column]) < 1e-4);
      }
  }
}
TEST(wgmma_k_major) {
  test_wgmma<bf16, 32, false, false>();
  test_wgmma<bf16, 192, false, false>();
}
TEST(wgmma_tf32) { test_wgmma<tf32, 64, false, false>(); }
TEST(wgmma_mn_major) {
  test_wgmma<bf16, 64, true, true>();
  test_wgmma<bf16, 128, true, true>();
  test_wgmma<bf16, 128, true, false>();
}

__global__ void no_fence_kernel() {
  float d[16];
  Wgmma<bf16>::run(d, tile_descriptor(shared_memory()), tile_descriptor(shared_memory() + 8192), false);
  wgmma_commit();
  wgmma_wait<0>();
}
TEST(wgmma_no_fence) { EXPECT_EQ(check::run(no_fence_kernel, 1, 128, kShared), cudaErrorIllegalInstruction); }

// Two blocks, each of which fetches half of a tile for both.
__global__ void multicast_kernel(const TensorMap map, uint16_t* out) {
  char* shared = shared_memory();
  Barrier* barrier = barrier_of(shared);
  const int rank = static_cast<int>(cluster_rank());
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(barrier, 4096);
    copy_tile_multicast(shared + 2048 * rank, &map, barrier, 0, 16 * rank, 3);
  }
  barrier_wait(barrier, 0);
  for (unsigned i = threadIdx.x; i < 2048; i += 32) {
    const unsigned row = i / 64, piece = i / 8 % 8;
    out[2048 * static_cast<unsigned>(rank) + i] =
        reinterpret_cast<uint16_t*>(shared)[row * 64 + (piece ^ row % 8) * 8 + i % 8];
  }
  cluster_sync();
}
TEST(multicast) {
  std::vector<uint16_t> data(32 * 64);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint16_t>(i + 1);
  const TensorMap map = map_of(TensorType::f16, data.data(), {64, 32}, {64, 16});
  check::Device<uint16_t> out(2 * 2048);
  cudaFuncSetAttribute(multicast_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = 2;
  config.blockDim = 32;
  config.dynamicSmemBytes = kShared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  EXPECT_EQ(cudaLaunchKernelEx(&config, multicast_kernel, map, out.data), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (size_t i = 0; i < 4096; ++i) EXPECT_EQ(out[i], data[i % 2048]);
}

}  // namespace

// What only Hopper has (sm_90a), but for products of warpgroups (wgmma.cuh): mbarriers, bulk copies of tensor tiles,
// clusters. Kernels that use it are compiled for sm_90a alone; elsewhere DVT_HAS_SM90A is 0 and they trap.
//
// tests/emulator/include/cuda/ptx_sm90.cuh has the same functions for the CPU.
//
// Tiles in shared memory. A bulk copy with the 128-byte swizzle writes rows of 128 bytes one after the other, eight to
// 1024 bytes, and exchanges the 16-byte pieces of a row: piece i of row r lies where piece i ^ (r % 8) would. In
// addresses: bits 4..6 are xored with bits 7..9, which is why tiles begin at multiples of 1024.
//   K-major (a row is an output row, its 128 bytes run along the sum): eight rows are one group, the next group is 1024
//     bytes on. A step of 32 bytes along the sum is 32 bytes on the start address.
//   MN-major (a row is one index of the sum, its 128 bytes run along the output): the next eight indices of the sum are
//     1024 bytes on; the next 64 outputs (16-bit) a whole tile on.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ptx.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DVT_HAS_SM90A 1
#else
#define DVT_HAS_SM90A 0
#endif

#if !defined(DVT_CUDA_ARCHITECTURES)
#define DVT_CUDA_ARCHITECTURES "90a"
#endif

namespace dvt::ptx {

// Whether this library has machine code for sm_90a: on a Hopper device one without it would run what was
// compiled from another architecture's PTX.
constexpr bool has_sm90a_code() {
  for (const char* p = DVT_CUDA_ARCHITECTURES; *p; ++p)
    if (p[0] == '9' && p[1] == '0' && p[2] == 'a') return true;
  return false;
}

// ----------------------------------------------------------------------------------------------------- mbarriers --

struct Barrier {
  uint64_t state;
};

// One thread initialises, then init_fence, then a barrier of the block (of the cluster, where there is one).
DVT_PTX void barrier_init(Barrier* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DVT_PTX void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DVT_PTX void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// The barrier at the same place in block `rank` of the cluster.
DVT_PTX void barrier_arrive(Barrier* barrier, uint32_t rank) {
  asm volatile(
      "{\n .reg .b32 remote;\n"
      " mapa.shared::cluster.u32 remote, %0, %1;\n"
      " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
// Arrives, and lets the phase wait for so many bytes of copies besides.
DVT_PTX void barrier_arrive_expect(Barrier* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Whether the phase of that parity (0 for the first) is complete; waits for some time.
DVT_PTX bool barrier_try_wait(Barrier* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n .reg .pred p;\n"
      " mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      " selp.b32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}
DVT_PTX void barrier_wait(Barrier* barrier, uint32_t parity) {
  while (!barrier_try_wait(barrier, parity)) {
  }
}

// Between ordinary stores to shared memory and what bulk copies or wgmma read there, in each thread that stored.
DVT_PTX void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ------------------------------------------------------------------------------------------------------ clusters --

DVT_PTX uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster.
DVT_PTX void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// From the same place in block `rank` of the cluster; 16-byte aligned.
DVT_PTX float4 load_cluster(const float* p, uint32_t rank) {
  float4 v;
  asm volatile(
      "{\n .reg .b32 remote;\n"
      " mapa.shared::cluster.u32 remote, %4, %5;\n"
      " ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_address(p)), "r"(rank)
      : "memory");
  return v;
}

// --------------------------------------------------------------------------------------------- copies of tensors --

// Where a tensor lies and which box of it a copy moves; passed to kernels by value, as a __grid_constant__ parameter.
struct alignas(128) TensorMap {
  uint64_t words[16];
};

enum class TensorType { f16, bf16, f32 };

// Of `rank` dimensions, the fastest first. extents, box: in elements; strides: in bytes, of all dimensions but the
// first, multiples of 16. Boxes have rows of at most 128 bytes, which are swizzled (see above). What lies outside is
// read as zero and not written. False where the driver has no such function or refuses.
inline bool encode_tensor_map(TensorMap* map, TensorType type, uint32_t rank, const void* base, const uint64_t* extents,
                              const uint64_t* strides, const uint32_t* box) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
  if (!encode) return false;
  const CUtensorMapDataType types[] = {CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                       CU_TENSOR_MAP_DATA_TYPE_FLOAT32};
  const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
  return encode(reinterpret_cast<CUtensorMap*>(map), types[static_cast<int>(type)], rank, const_cast<void*>(base),
                extents, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// How long the second-level cache is to keep what is read.
enum class Keep : uint64_t {
  normal = 0x1000000000000000,
  first_out = 0x12f0000000000000,
  last_out = 0x14f0000000000000
};

DVT_PTX void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// The box whose first element has these coordinates, the fastest first, into shared memory (aligned to 1024 bytes); its
// bytes are counted on `barrier`, also those of zeros.
DVT_PTX void copy_tile(void* to, const TensorMap* map, Barrier* barrier, int c0, int c1, Keep keep = Keep::normal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "l"(static_cast<uint64_t>(keep))
      : "memory");
}
DVT_PTX void copy_tile(void* to, const TensorMap* map, Barrier* barrier, int c0, int c1, int c2,
                       Keep keep = Keep::normal) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "l"(static_cast<uint64_t>(keep))
      : "memory");
}
// To the same place in each block of the cluster whose bit is set in `blocks`, counted on the barrier there.
DVT_PTX void copy_tile_multicast(void* to, const TensorMap* map, Barrier* barrier, int c0, int c1, uint16_t blocks,
                                 Keep keep = Keep::normal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%4, %5}], [%2], %3, %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "h"(blocks), "r"(c0), "r"(c1), "l"(static_cast<uint64_t>(keep))
      : "memory");
}

// From shared to global memory; groups and waits belong to the thread that calls.
DVT_PTX void store_tile(const TensorMap* map, const void* from, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(from)), "r"(c0), "r"(c1)
               : "memory");
}
DVT_PTX void store_tile(const TensorMap* map, const void* from, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}
DVT_PTX void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most kPending groups still read shared memory; for the writes themselves the end of the kernel is enough.
template <int kPending>
DVT_PTX void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// -------------------------------------------------------------------------------------------- warps and registers --

// One lane of a warp whose lanes are all here; always the same one.
DVT_PTX bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n .reg .pred p;\n"
      " elect.sync _|p, 0xffffffff;\n"
      " selp.b32 %0, 1, 0, p;\n}"
      : "=r"(elected));
  return elected != 0;
}

// How many registers each thread of this warpgroup has from here on.
template <int kRegisters>
DVT_PTX void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
DVT_PTX void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Counts a thread in at named barrier `id` without waiting there.
DVT_PTX void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace dvt::ptx

// The twin of csrc/cuda/ptx.cuh for the CPU: the same functions, by the emulator's scheduler. What they do is told
// there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/half.h"
#include "emulator/tensor_core.h"

namespace dvt::ptx {

inline char* shared_memory() { return emulator::shared_memory(); }
template <class T>
T& shared() {
  emulator::on_shared(emulator::shared_memory(), sizeof(T), alignof(T), "shared<T>()");
  return *reinterpret_cast<T*>(emulator::shared_memory());
}
inline uint32_t shared_address(const void* p) { return emulator::on_shared(p, 0, 1, "shared_address"); }

inline uint32_t lane_id() { return threadIdx.x & 31u; }

// ------------------------------------------------------------------------------------------------- conversions --

inline uint32_t pack_bf16(float low, float high) {
  return float_to_bfloat16(low) | static_cast<uint32_t>(float_to_bfloat16(high)) << 16;
}
inline uint32_t pack_f16(float low, float high) {
  return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16;
}
inline float f16_to_float(uint16_t bits) { return half_to_float(bits); }
inline uint32_t round_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}
inline float exp2_approx(float x) { return fabsf(x) < 126.0f ? exp2f(x) : x < 0 ? 0.0f : exp2f(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline float sqrt_ordinary(float x) { return sqrtf(x); }
inline float divide_ordinary(float a, float y) { return a / y; }

inline void forget(float&) {}

// ---------------------------------------------------------------------------------------------- matrix products --

inline void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::MatrixProduct own = {c, a, b};
  emulator::warp_collective(~0u, emulator::compute_mma_bf16, &own, "mma.m16n8k16.bf16");
}
inline void mma_m16n8k16_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::MatrixProduct own = {c, a, b};
  emulator::warp_collective(~0u, emulator::compute_mma_f16, &own, "mma.m16n8k16.f16");
}
inline void mma_m16n8k8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::MatrixProduct own = {c, a, b};
  emulator::warp_collective(~0u, emulator::compute_mma_tf32, &own, "mma.m16n8k8.tf32");
}

inline void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
  emulator::MatrixLoad own = {out, row};
  emulator::warp_collective(~0u, emulator::compute_ldmatrix<4, false>, &own, "ldmatrix.x4");
}
inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row) {
  emulator::MatrixLoad own = {out, row};
  emulator::warp_collective(~0u, emulator::compute_ldmatrix<4, true>, &own, "ldmatrix.x4.trans");
}
inline void ldmatrix_x2(uint32_t (&out)[2], const void* row) {
  emulator::MatrixLoad own = {out, row};
  emulator::warp_collective(~0u, emulator::compute_ldmatrix<2, false>, &own, "ldmatrix.x2");
}
inline void ldmatrix_x2_trans(uint32_t (&out)[2], const void* row) {
  emulator::MatrixLoad own = {out, row};
  emulator::warp_collective(~0u, emulator::compute_ldmatrix<2, true>, &own, "ldmatrix.x2.trans");
}

// ------------------------------------------------------------------------------------------- asynchronous copies --

inline void copy_async_16(void* to, const void* from, bool valid = true) { emulator::copy_async(to, from, 16, valid); }
template <int kSize>
void copy_async_small(void* to, const void* from, bool valid = true) {
  static_assert(kSize == 4 || kSize == 8);
  emulator::copy_async(to, from, kSize, valid);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int kPending>
void copy_async_wait() {
  emulator::copy_async_wait(kPending);
}

// ------------------------------------------------------------------------------------------------- global memory --

inline void add_global(float* p, float v) { atomicAdd(p, v); }
inline void add_global(float* p, float4 v) {
  emulator::check_aligned(p, 16, "add_global");
  atomicAdd(p, v.x), atomicAdd(p + 1, v.y), atomicAdd(p + 2, v.z), atomicAdd(p + 3, v.w);
}
inline uint4 load_once(const uint4* p) { return __ldg(p); }
inline uint32_t load_acquire(const uint32_t* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline void store_release(uint32_t* p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
inline uint32_t add_release(uint32_t* p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
inline void spin_pause() { emulator::pause(); }

// -------------------------------------------------------------------------------- launches that overlap (sm_90) --

inline void wait_for_previous() {}
inline void allow_next() {}

// ------------------------------------------------------------------------------------------------------ barriers --

inline void named_barrier(int id, int threads) { emulator::barrier_sync(id, threads, "named_barrier"); }

}  // namespace dvt::ptx

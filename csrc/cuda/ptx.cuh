// The one header that wraps PTX. Kernels use CUDA's own intrinsics where C++ has them (__shfl_xor_sync, atomicAdd,
// __syncthreads ...) and these functions for the rest.
//
// tests/emulator/include/cuda/ptx.cuh has the same functions for the CPU: there the very same kernels run in fibers.
// A function that is added here is added there. What only Hopper has (wgmma, bulk tensor copies, mbarriers) is in
// ptx_sm90.cuh.
//
// Fragments (PTX ISA, "Matrix Fragments for mma"): in a warp, lane = 4 * group + quad. For m16n8k16, of 16-bit types,
//   A [16 x 16] row-major: a[0] rows group,     columns 2 quad, 2 quad + 1;  a[1] rows group + 8, the same columns;
//                          a[2] rows group,     columns 2 quad + 8, + 9;     a[3] rows group + 8, columns + 8, + 9
//   B [16 x 8] by columns: b[0] rows 2 quad, 2 quad + 1 of column group;     b[1] rows 2 quad + 8, + 9
//   C [16 x 8]:            c[0], c[1] row group, columns 2 quad, 2 quad + 1;  c[2], c[3] row group + 8
// For m16n8k8 of tf32: a[0] (group, quad), a[1] (group + 8, quad), a[2] (group, quad + 4), a[3] (group + 8, quad + 4);
//   b[0] (quad, group), b[1] (quad + 4, group); C as above.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dvt::ptx {

#define DVT_PTX __device__ __forceinline__

// The dynamic shared memory of the block, aligned to 1024 bytes. All shared memory is dynamic: its size is said at the
// launch, the emulator poisons it at the start of each block and watches its end.
DVT_PTX char* shared_memory() {
  extern __shared__ __align__(1024) char dvt_shared[];
  return dvt_shared;
}
template <class T>
DVT_PTX T& shared() {
  return *reinterpret_cast<T*>(shared_memory());
}
// The address within shared memory, as instructions take it.
DVT_PTX uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

DVT_PTX uint32_t lane_id() { return threadIdx.x & 31u; }  // blocks are one-dimensional, or have x of whole warps

// ------------------------------------------------------------------------------------------------- conversions --

// Round to nearest even; `low` goes to bits 0..15.
DVT_PTX uint32_t pack_bf16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
DVT_PTX uint32_t pack_f16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
DVT_PTX float f16_to_float(uint16_t bits) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
  return out;
}
// The nearest tf32, ties away from zero, as a float's bits.
DVT_PTX uint32_t round_tf32(float x) {
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(x));
  return out;
}

// 2^x and 1 / x to about 2 ulp, subnormals as zero; for softmax.
DVT_PTX float exp2_approx(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
DVT_PTX float reciprocal_approx(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// Correctly rounded square root and quotient, bit for bit __fsqrt_rn and __fdiv_rn, without their branches for extreme
// operands: what the compiler emits for the others on sm_80 to sm_120. x and y in [2^-100, 2^100], |a| in [2^-75, 2^60]
// and the quotient's exponent within +-115.
DVT_PTX float sqrt_ordinary(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  const float root = __fmul_rn(x, y);
  return __fmaf_rn(__fmaf_rn(-root, root, x), __fmul_rn(y, 0.5f), root);
}
DVT_PTX float divide_ordinary(float a, float y) {
  float r = reciprocal_approx(y);
  r = __fmaf_rn(r, __fmaf_rn(-y, r, 1.0f), r);
  const float quotient = __fmul_rn(a, r);
  return __fmaf_rn(r, __fmaf_rn(-y, quotient, a), quotient);
}

// To the compiler x is another number from here on: what it derives from x is derived here, and not kept in registers
// from before. No instruction.
DVT_PTX void forget(float& x) { asm volatile("" : "+f"(x)); }

// ---------------------------------------------------------------------------------------------- matrix products --

// c += a b.
DVT_PTX void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DVT_PTX void mma_m16n8k16_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DVT_PTX void mma_m16n8k8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four (two) 8 x 8 matrices of 16-bit numbers; lane i names row i % 8 of matrix i / 8, 16 bytes each. Of matrix m, lane
// 4 g + q gets columns 2 q, 2 q + 1 of row g (trans: rows 2 q, 2 q + 1 of column g) in out[m].
DVT_PTX void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
DVT_PTX void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
DVT_PTX void ldmatrix_x2(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
}
DVT_PTX void ldmatrix_x2_trans(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
}

// ------------------------------------------------------------------------------------------- asynchronous copies --

// 16 bytes from global to shared memory past L1; with `valid` false zeros are written and nothing is read.
DVT_PTX void copy_async_16(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
// 4 or 8 bytes, for rows that are not aligned to 16.
template <int kSize>
DVT_PTX void copy_async_small(void* to, const void* from, bool valid = true) {
  static_assert(kSize == 4 || kSize == 8);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(kSize),
               "r"(valid ? kSize : 0)
               : "memory");
}
DVT_PTX void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's groups are on their way; others' copies need a barrier after it.
template <int kPending>
DVT_PTX void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ------------------------------------------------------------------------------------------------- global memory --

// *p += v, without the old value; a vector where the architecture has it (16-byte aligned).
DVT_PTX void add_global(float* p, float v) { asm volatile("red.global.add.f32 [%0], %1;" ::"l"(p), "f"(v) : "memory"); }
DVT_PTX void add_global(float* p, float4 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
#else
  add_global(p, v.x), add_global(p + 1, v.y), add_global(p + 2, v.z), add_global(p + 3, v.w);
#endif
}
// Reads once and does not keep in L1.
DVT_PTX uint4 load_once(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
// For counters that another block writes while this kernel runs.
DVT_PTX uint32_t load_acquire(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DVT_PTX void store_release(uint32_t* p, uint32_t v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// *p += v with release semantics: what this thread (and, after a barrier, its block) wrote is seen by who acquires it.
DVT_PTX uint32_t add_release(uint32_t* p, uint32_t v) {
  uint32_t old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
}
DVT_PTX void spin_pause() {
#if __CUDA_ARCH__ >= 700
  __nanosleep(20);
#endif
}

// -------------------------------------------------------------------------------- launches that overlap (sm_90) --

// A kernel launched with `overlap` starts before the one before it ends: it may read what that one wrote only after
// `wait_for_previous`. `allow_next` lets the next one start; elsewhere both do nothing.
DVT_PTX void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DVT_PTX void allow_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ------------------------------------------------------------------------------------------------------ barriers --

// Barrier `id` (1 to 15) for `threads` threads of the block, whole warps.
DVT_PTX void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

}  // namespace dvt::ptx

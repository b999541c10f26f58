// Products of warpgroups (wgmma, sm_90a): D [64 x N] += A [64 x 32 bytes] B [32 bytes x N], float32 sums in the
// registers of 128 threads, A from shared memory or registers, B from shared memory. 16-bit types sum over 16, tf32
// over 8.
//
// Warp w of the warpgroup has rows 16 w .. 16 w + 15 of D; in it, lane = 4 * group + quad:
//   d[4 j], d[4 j + 1]      row group,     columns 8 j + 2 quad, + 1
//   d[4 j + 2], d[4 j + 3]  row group + 8, the same columns
// A in registers: as for mma.m16n8k16 (ptx.cuh), which is how the columns 16 i .. 16 i + 15 of a D lie, packed.
//
// Order of use: hold(d); wgmma_fence(); products; wgmma_commit(); ... wgmma_wait<pending groups>(); hold(d). Between
// the fence and the wait neither d nor A may be touched; `hold` keeps the compiler from moving what does across.
#pragma once

#include "cuda/numeric.cuh"
#include "cuda/ptx_sm90.cuh"

namespace dvt::ptx {

// The descriptor of a tile in shared memory with the 128-byte swizzle (ptx_sm90.cuh): bits 0..13 start address / 16,
// 16..29 the leading and 32..45 the stride offset / 16, 62..63 the swizzle (1: 128 bytes). K-major: `stride` from eight
// rows to the next eight, the leading offset is not used. MN-major: `stride` from eight indices of the sum to the next
// eight, `leading` from 128 bytes of outputs to the next.
DVT_PTX uint64_t tile_descriptor(const void* start, uint32_t stride = 1024, uint32_t leading = 16) {
  const uint64_t address = shared_address(start);
  return (address >> 4 & 0x3fff) | static_cast<uint64_t>(leading >> 4 & 0x3fff) << 16 |
         static_cast<uint64_t>(stride >> 4 & 0x3fff) << 32 | 1ull << 62;
}
// The same tile from `bytes` (a multiple of 16) on.
DVT_PTX uint64_t advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

DVT_PTX void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DVT_PTX void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
DVT_PTX void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
DVT_PTX void hold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
DVT_PTX void hold(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// d = a b where `accumulate` is false. kMnMajor: B is MN-major (16-bit types), else K-major; A always K-major.
template <class T, bool kMnMajor = false>
struct Wgmma;

// Of `kMnMajor` there is one instruction operand a matrix, that tf32 lacks.
#define DVT_WGMMA_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define DVT_WGMMA_R8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define DVT_WGMMA_R16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define DVT_WGMMA_R24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define DVT_WGMMA_R32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define DVT_WGMMA_R40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define DVT_WGMMA_R48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define DVT_WGMMA_R56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define DVT_WGMMA_R64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define DVT_WGMMA_R72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define DVT_WGMMA_R80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define DVT_WGMMA_R88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define DVT_WGMMA_R96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define DVT_WGMMA_R104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define DVT_WGMMA_R112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define DVT_WGMMA_R120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define DVT_WGMMA_LIST32 DVT_WGMMA_R0 ", " DVT_WGMMA_R8
#define DVT_WGMMA_LIST64 DVT_WGMMA_LIST32 ", " DVT_WGMMA_R16 ", " DVT_WGMMA_R24
#define DVT_WGMMA_LIST96 DVT_WGMMA_LIST64 ", " DVT_WGMMA_R32 ", " DVT_WGMMA_R40
#define DVT_WGMMA_LIST128 DVT_WGMMA_LIST96 ", " DVT_WGMMA_R48 ", " DVT_WGMMA_R56
#define DVT_WGMMA_LIST192 DVT_WGMMA_LIST128 ", " DVT_WGMMA_R64 ", " DVT_WGMMA_R72 ", " DVT_WGMMA_R80 ", " DVT_WGMMA_R88
#define DVT_WGMMA_LIST256 \
  DVT_WGMMA_LIST192 ", " DVT_WGMMA_R96 ", " DVT_WGMMA_R104 ", " DVT_WGMMA_R112 ", " DVT_WGMMA_R120
#define DVT_WGMMA_F8(d, i)                                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define DVT_WGMMA_OUT32(d) DVT_WGMMA_F8(d, 0), DVT_WGMMA_F8(d, 8)
#define DVT_WGMMA_OUT64(d) DVT_WGMMA_OUT32(d), DVT_WGMMA_F8(d, 16), DVT_WGMMA_F8(d, 24)
#define DVT_WGMMA_OUT96(d) DVT_WGMMA_OUT64(d), DVT_WGMMA_F8(d, 32), DVT_WGMMA_F8(d, 40)
#define DVT_WGMMA_OUT128(d) DVT_WGMMA_OUT96(d), DVT_WGMMA_F8(d, 48), DVT_WGMMA_F8(d, 56)
#define DVT_WGMMA_OUT192(d) \
  DVT_WGMMA_OUT128(d), DVT_WGMMA_F8(d, 64), DVT_WGMMA_F8(d, 72), DVT_WGMMA_F8(d, 80), DVT_WGMMA_F8(d, 88)
#define DVT_WGMMA_OUT256(d) \
  DVT_WGMMA_OUT192(d), DVT_WGMMA_F8(d, 96), DVT_WGMMA_F8(d, 104), DVT_WGMMA_F8(d, 112), DVT_WGMMA_F8(d, 120)

// n, type, then the numbers of the operands behind the sums, as text.
#define DVT_WGMMA_SHARED(n, type, operand_a, operand_b, operand_p, tail)                                            \
  static DVT_PTX void run(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate) {                             \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " operand_p ", 0;\n wgmma.mma_async.sync.aligned.m64n" #n type \
                 " {" DVT_WGMMA_LIST##n "}, " operand_a ", " operand_b ", p, 1, 1" tail ";\n}"                      \
                 : DVT_WGMMA_OUT##n(d)                                                                              \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate))                                                \
                 : "memory");                                                                                       \
  }
#define DVT_WGMMA_REGISTERS(n, type, a0, a1, a2, a3, operand_b, operand_p, tail)                                    \
  static DVT_PTX void run(float (&d)[n / 2], uint32_t (&a)[4], uint64_t b, bool accumulate) {                       \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " operand_p ", 0;\n wgmma.mma_async.sync.aligned.m64n" #n type \
                 " {" DVT_WGMMA_LIST##n "}, {" a0 "," a1 "," a2 "," a3 "}, " operand_b ", p, 1, 1" tail ";\n}"      \
                 : DVT_WGMMA_OUT##n(d)                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate))            \
                 : "memory");                                                                                       \
  }
#define DVT_WGMMA_SHARED_ALL(type, tail)                 \
  DVT_WGMMA_SHARED(32, type, "%16", "%17", "%18", tail)  \
  DVT_WGMMA_SHARED(64, type, "%32", "%33", "%34", tail)  \
  DVT_WGMMA_SHARED(96, type, "%48", "%49", "%50", tail)  \
  DVT_WGMMA_SHARED(128, type, "%64", "%65", "%66", tail) \
  DVT_WGMMA_SHARED(192, type, "%96", "%97", "%98", tail) \
  DVT_WGMMA_SHARED(256, type, "%128", "%129", "%130", tail)
#define DVT_WGMMA_REGISTERS_ALL(type, tail)                                     \
  DVT_WGMMA_REGISTERS(64, type, "%32", "%33", "%34", "%35", "%36", "%37", tail) \
  DVT_WGMMA_REGISTERS(128, type, "%64", "%65", "%66", "%67", "%68", "%69", tail)

#if DVT_HAS_SM90A
template <>
struct Wgmma<cuda::bf16, false> {
  DVT_WGMMA_SHARED_ALL("k16.f32.bf16.bf16", ", 0, 0")
  DVT_WGMMA_REGISTERS_ALL("k16.f32.bf16.bf16", ", 0")
};
template <>
struct Wgmma<cuda::bf16, true> {
  DVT_WGMMA_SHARED_ALL("k16.f32.bf16.bf16", ", 0, 1")
  DVT_WGMMA_REGISTERS_ALL("k16.f32.bf16.bf16", ", 1")
};
template <>
struct Wgmma<cuda::f16, false> {
  DVT_WGMMA_SHARED_ALL("k16.f32.f16.f16", ", 0, 0")
  DVT_WGMMA_REGISTERS_ALL("k16.f32.f16.f16", ", 0")
};
template <>
struct Wgmma<cuda::f16, true> {
  DVT_WGMMA_SHARED_ALL("k16.f32.f16.f16", ", 0, 1")
  DVT_WGMMA_REGISTERS_ALL("k16.f32.f16.f16", ", 1")
};
template <>
struct Wgmma<cuda::tf32, false> {
  DVT_WGMMA_SHARED_ALL("k8.f32.tf32.tf32", "")
};
#endif

}  // namespace dvt::ptx

// Marks index mathematics that the CPU code and the CUDA kernels share through one header.
#pragma once

#if defined(__CUDACC__)
#define DVT_HOST_DEVICE __host__ __device__ __forceinline__
#define DVT_HOST_DEVICE_MEMBER __host__ __device__ __forceinline__
#else
// Static, so that the copy of each translation unit is its own: one compiled for AVX-512 must never be the one that
// the linker keeps for everybody.
#define DVT_HOST_DEVICE static inline __attribute__((always_inline))
#define DVT_HOST_DEVICE_MEMBER inline __attribute__((always_inline))
#endif

// Kernels with mistakes: each ends with a sticky error and one that says what and where (tests/test_cuda_emulator.py).
#include "check.h"

namespace {

using dvt::ptx::shared_memory;

constexpr unsigned kAll = 0xffffffffu;

__global__ void lane_missing_kernel() {
  if (threadIdx.x != 13) __syncwarp();
  if (threadIdx.x == 13) __shfl_sync(kAll, 1, 0);
}
TEST(fault_lane_missing) { EXPECT_EQ(check::run(lane_missing_kernel, 1, 32, 0), cudaErrorLaunchFailure); }

__global__ void barrier_missing_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
    dvt::ptx::named_barrier(3, 64);
  } else {
    __syncthreads();
    __syncthreads();
  }
}
TEST(fault_barrier_missing) { EXPECT_EQ(check::run(barrier_missing_kernel, 2, 64, 0), cudaErrorLaunchFailure); }

__global__ void wrong_mask_kernel() { __ballot_sync(0xfffffffeu, 1); }
TEST(fault_wrong_mask) { EXPECT_EQ(check::run(wrong_mask_kernel, 1, 32, 0), cudaErrorIllegalInstruction); }

__global__ void endless_kernel(const unsigned* flag) {
  while (dvt::ptx::load_acquire(flag) == 0) dvt::ptx::spin_pause();
}
TEST(fault_endless) {
  dvt_emulator_set("DVT_EMULATOR_TIMEOUT", "0.2");
  check::Device<unsigned> flag(std::vector<unsigned>(1));
  EXPECT_EQ(check::run(endless_kernel, 1, 32, 0, flag.data), cudaErrorLaunchTimeout);
}

__global__ void misaligned_kernel(const char* p) { dvt::ptx::copy_async_16(shared_memory(), p + threadIdx.x * 4); }
TEST(fault_misaligned) {
  check::Device<char> p(1024);
  EXPECT_EQ(check::run(misaligned_kernel, 1, 32, 64, p.data), cudaErrorMisalignedAddress);
}

__global__ void copy_too_far_kernel(const char* p) {
  dvt::ptx::copy_async_16(shared_memory() + threadIdx.x * 16, p + threadIdx.x * 16);
}
TEST(fault_copy_too_far) {
  check::Device<char> p(1024);
  EXPECT_EQ(check::run(copy_too_far_kernel, 1, 32, 31 * 16, p.data), cudaErrorIllegalAddress);
}

__global__ void trap_kernel() {
  if (blockIdx.x == 3 && threadIdx.y == 2) __trap();
}
TEST(fault_trap) { EXPECT_EQ(check::run(trap_kernel, 5, dim3(8, 4), 0), cudaErrorLaunchFailure); }

__global__ void late_operation_kernel() {
  emulator::defer([] { emulator::fail(cudaErrorIllegalAddress, "after all threads have ended"); });
}
TEST(fault_late_operation) { EXPECT_EQ(check::run(late_operation_kernel, 2, 1, 0), cudaErrorIllegalAddress); }

// Found by AddressSanitizer where it is, and by guard bytes where it isn't.
__global__ void shared_overrun_kernel() { shared_memory()[100 + threadIdx.x / 31] = 1; }
TEST(overrun_shared) { EXPECT_EQ(check::run(shared_overrun_kernel, 1, 32, 101), cudaErrorIllegalAddress); }

__global__ void global_overrun_kernel(char* p) { p[threadIdx.x] = 1; }
TEST(overrun_global) {
  {
    check::Device<char> p(31);
    EXPECT_EQ(check::run(global_overrun_kernel, 1, 32, 0, p.data), cudaSuccess);
  }
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
}

}  // namespace

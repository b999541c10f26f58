// The emulator's settings: environment variables, which a test can override while the process runs.
//
//   DVT_EMULATOR_SEED         of every random order (0)
//   DVT_EMULATOR_THREADS      operating system threads that run blocks (1)
//   DVT_EMULATOR_STACK        kilobytes of a thread's stack
//   DVT_EMULATOR_TIMEOUT      seconds that threads may spin without anything happening (20)
//   DVT_EMULATOR_ASYNC        1: a stream's operations run when somebody waits for them, not when they are enqueued (0)
//   DVT_EMULATOR_ARCH         compute capability, 90
//   DVT_EMULATOR_SMS          multiprocessors, 132
//   DVT_EMULATOR_DEVICES      1; 0 is cudaErrorNoDevice
//   DVT_EMULATOR_MEMORY       bytes of a device's memory (139 GB); more is cudaErrorMemoryAllocation
//   DVT_EMULATOR_DRIVER       version of the driver, such as 13000; 0: none; below 13000: cudaErrorInsufficientDriver
//   DVT_EMULATOR_FAIL_LAUNCH  the n-th launch (from 1) fails with a sticky error
//   DVT_EMULATOR_FAIL_CODE    which one (700)
//   DVT_EMULATOR_FAIL_MALLOC  the n-th allocation (from 1) is cudaErrorMemoryAllocation
#pragma once

namespace emulator {
// Its value, or `otherwise` where it isn't set.
double setting(const char* name, double otherwise);
}  // namespace emulator

// For tests, through dlsym. `value` null: the environment's again.
extern "C" {
__attribute__((visibility("default"))) void dvt_emulator_set(const char* name, const char* value);
// "launches", "allocations", "bytes" (allocated now), "copies": since the process started or the last reset.
__attribute__((visibility("default"))) long long dvt_emulator_count(const char* what);
// Runs what waits in all streams: for tests that read an array themselves, with DVT_EMULATOR_ASYNC=1.
__attribute__((visibility("default"))) void dvt_emulator_synchronize();
// No sticky error, counts of 0.
__attribute__((visibility("default"))) void dvt_emulator_reset();
}

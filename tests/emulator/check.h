// A few lines of test framework for the emulator: `emulator_test NAME` runs one test, without a name it lists them.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/ptx.cuh"
#include "settings.h"

namespace check {

struct Test {
  const char* name;
  void (*run)();
};
std::vector<Test>& tests();
extern int failures;
struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

// kernel<<<grid, block, shared>>>(args...), then waits for it.
template <class... Params, class... Args>
cudaError_t run(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, Args&&... args) {
  if (shared > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  return error ? error : cudaDeviceSynchronize();
}

// Device memory that is freed at the end.
template <class T>
struct Device {
  T* data = nullptr;
  size_t count;
  explicit Device(size_t n) : count(n) { cudaMalloc(&data, n * sizeof(T)); }
  explicit Device(const std::vector<T>& from) : Device(from.size()) {
    cudaMemcpy(data, from.data(), count * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Device() { cudaFree(data); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  T& operator[](size_t i) { return data[i]; }
};

}  // namespace check

#define TEST(name)                                                        \
  static void test_##name();                                              \
  static const check::Registration registered_##name(#name, test_##name); \
  static void test_##name()

#define EXPECT(condition)                                                                                             \
  do {                                                                                                                \
    if (!(condition) && ++check::failures <= 10) std::printf("%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
  } while (0)

#define EXPECT_EQ(got, expected)                                                                            \
  do {                                                                                                      \
    const auto got_ = (got);                                                                                \
    const auto expected_ = static_cast<decltype(got_ + 0)>(expected);                                       \
    if (!(got_ == expected_) && ++check::failures <= 10)                                                    \
      std::printf("%s:%d: %s is %s, expected %s\n", __FILE__, __LINE__, #got, std::to_string(got_).c_str(), \
                  std::to_string(expected_).c_str());                                                       \
  } while (0)

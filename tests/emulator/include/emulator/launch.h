// cudaLaunchKernelEx: the kernel and its arguments become a function without arguments, that each thread calls.
#pragma once

#include <functional>
#include <tuple>
#include <utility>

#include "emulator/runtime_api.h"

namespace emulator {
cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body);
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  return emulator::launch_kernel(
      *config, reinterpret_cast<const void*>(kernel),
      [kernel, all = std::tuple<Params...>(std::forward<Args>(args)...)] { std::apply(kernel, all); });
}

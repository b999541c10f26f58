// What the rest of the runtime asks of the emulated devices.
#pragma once

#include <cstddef>

#include "emulator/errors.h"

namespace emulator {
cudaError_t devices_usable();             // there is a driver, new enough, and a device
size_t shared_limit(const void* kernel);  // bytes a block may have: 48 KB, or what cudaFuncSetAttribute said
int multiprocessors();
int blocks_per_multiprocessor(int threads, size_t shared);
}  // namespace emulator

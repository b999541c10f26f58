// What the engine's bindings are given, on the CPU and on a device.
#pragma once

#include <string>
#include <utility>

#include "bindings/convert.h"
#include "engine/session.h"

namespace dvt::bindings {

// The view of an array in main memory: float32, float16 or uint8, any strides.
TensorView view_of(const py::array& array, const char* name, bool writable);

SessionOptions session_options(const std::string& input, std::pair<int64_t, int64_t> size,
                               std::pair<int64_t, int64_t> grid, int64_t batch, int64_t threads,
                               std::pair<int64_t, int64_t> max_source);

}  // namespace dvt::bindings

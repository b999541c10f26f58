// A caller's tensor to the view that the engine takes, checked for everything that can be checked without its use.
#pragma once

#include "capi/errors.h"
#include "core/tensor.h"

namespace dvt::capi {

constexpr int kNoDevice = -1;

// `name` begins the sentences: "input", "output" or "raw". `written`: elements must not overlap. `cuda_device`: whose
// memory is taken beside main memory, or kNoDevice; *on_device: whether it lies there.
dvt_status view_tensor(const dvt_tensor* tensor, const char* name, bool written, int cuda_device, TensorView* view,
                       bool* on_device) noexcept;

}  // namespace dvt::capi

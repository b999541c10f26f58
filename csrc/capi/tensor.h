// A caller's tensor to the view that the engine takes, checked for everything that can be checked without its use.
#pragma once

#include "capi/errors.h"
#include "core/tensor.h"

namespace dvt::capi {

// `name` begins the sentences: "input", "output" or "raw". `written`: elements must not overlap.
dvt_status view_tensor(const dvt_tensor* tensor, const char* name, bool written, TensorView* view) noexcept;

}  // namespace dvt::capi

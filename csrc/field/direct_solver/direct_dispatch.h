// From the type of the features, known when the program runs, to a type of the kernels.
#pragma once

#include <algorithm>

#include "core/tensor.h"
#include "cuda/numeric.cuh"
#include "cuda/runtime.h"

namespace dvt::cuda {

template <class Body>
Status with_row_type(Dtype type, const Body& body) {
  switch (type) {
    case Dtype::float32: return body(float{});
    case Dtype::float16: return body(f16{});
    case Dtype::bfloat16: return body(bf16{});
    default: return invalid_argument("features must be float32, float16 or bfloat16, got ", dtype_name(type));
  }
}

}  // namespace dvt::cuda

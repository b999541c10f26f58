// Rows of floats from and to tensors of any floating type and any strides.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace dvt {

constexpr bool is_floating(Dtype dtype) { return dtype != Dtype::uint8; }

// count values, `stride` elements apart, from element `offset` on.
void read_values(const TensorView& from, int64_t offset, int64_t stride, int64_t count, float* to);
// The same way back; false where one is NaN or infinite, or becomes so in a narrower type.
bool write_values(const float* from, const TensorView& to, int64_t offset, int64_t stride, int64_t count);

}  // namespace dvt

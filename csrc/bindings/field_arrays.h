// Conversions that the bindings of stage 1 share.
#pragma once

#include "bindings/convert.h"
#include "field/features/features.h"
#include "field/mlp/mlp.h"

namespace dvt::bindings {

// Whether a contiguous array is float16; refuses what is not float32 either.
inline bool is_half(const py::array& array, const char* name) {
  const bool half = array.dtype().kind() == 'f' && array.itemsize() == 2;
  const bool single = array.dtype().kind() == 'f' && array.itemsize() == 4;
  if (!half && !single)
    raise_if_error(invalid_argument(name, " must be float32 or float16, got ", std::string(py::str(array.dtype()))));
  if (!(array.flags() & py::array::c_style)) raise_if_error(invalid_argument(name, " must be contiguous"));
  return half;
}

// The last axis of `array` is the channels.
inline Features features_of(const py::array& array, const char* name) {
  const bool half = is_half(array, name);
  if (array.ndim() < 1) raise_if_error(invalid_argument(name, " must have at least one axis"));
  const int64_t channels = array.shape(array.ndim() - 1);
  return {array.data(), half, channels ? array.size() / channels : 0, channels};
}

inline MlpShape mlp_shape(const std::vector<int64_t>& widths) {
  const int layers = static_cast<int>(widths.size()) - 1;
  if (layers < 1 || layers > kMaxMlpLayers)
    raise_if_error(invalid_argument("widths must have 2 to ", kMaxMlpLayers + 1, " entries, got ", widths.size()));
  MlpShape shape{layers, {}};
  for (size_t i = 0; i < widths.size(); ++i) {
    if (widths[i] < 1 || widths[i] > (1 << 20))
      raise_if_error(invalid_argument("widths must be 1 to 1048576, got ", widths[i]));
    shape.widths[i] = widths[i];
  }
  return shape;
}

}  // namespace dvt::bindings

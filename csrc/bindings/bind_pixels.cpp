// Pixels as a session prepares them, bound for tests and benchmarks only.
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/convert.h"
#include "core/buffer.h"
#include "engine/pixels.h"

namespace dvt::bindings {
namespace {

// uint8 [H, W, 3] or float32 [3, H, W] with any strides -> float32 [3, height, width].
Array<float> prepare_pixels_binding(const py::array& image, std::pair<int64_t, int64_t> size,
                                    const std::array<float, 3>& scale, const std::array<float, 3>& shift,
                                    std::pair<int64_t, int64_t> max_source) {
  check_environment();
  PixelsPlan plan{size.first, size.second, max_source.first, max_source.second, {}, {}};
  std::copy(scale.begin(), scale.end(), plan.scale);
  std::copy(shift.begin(), shift.end(), plan.shift);
  raise_if_error(check_pixels_plan(plan));
  TensorView view;
  if (py::isinstance<py::array_t<uint8_t>>(image)) {
    view.dtype = Dtype::uint8;
  } else if (!py::isinstance<py::array_t<float>>(image)) {
    raise_if_error(invalid_argument("an image must be uint8 or float32"));
  }
  if (image.ndim() > kMaxRank) raise_if_error(invalid_argument("an image must have 3 axes, got ", image.ndim()));
  view.data = const_cast<void*>(image.data());
  view.rank = static_cast<int>(image.ndim());
  for (int axis = 0; axis < view.rank; ++axis) {
    view.shape[axis] = image.shape(axis);
    view.strides[axis] = image.strides(axis) / image.itemsize();
  }
  auto out = new_array<float>({3, plan.height, plan.width});
  float* result = out.mutable_data();
  Status status;
  {
    py::gil_scoped_release release;
    const size_t bytes = pixels_scratch_bytes(plan);
    Buffer<char> scratch(static_cast<int64_t>(bytes));
    std::memset(scratch.data(), 0xff, bytes);  // NaN: what the scratch holds must not matter
    status = prepare_pixels(plan, view, scratch.data(), result);
  }
  raise_if_error(status);
  return out;
}

}  // namespace

void bind_pixels(py::module_& m) {
  m.def("prepare_pixels", &prepare_pixels_binding, py::arg("image"), py::arg("size"), py::arg("scale"),
        py::arg("shift"), py::arg("max_source"));
}

}  // namespace dvt::bindings

// Pixels as a session prepares them, bound for tests and benchmarks only.
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/convert.h"
#include "core/buffer.h"
#include "engine/pixels.h"

namespace dvt::bindings {
namespace {

TensorView view_of(const py::array& image) {
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
  return view;
}

// A plan, its scratch and its result.
class Pixels {
 public:
  Pixels(std::pair<int64_t, int64_t> size, std::pair<int64_t, int64_t> max_source, const std::array<float, 3>& scale,
         const std::array<float, 3>& shift)
      : plan_{size.first, size.second, max_source.first, max_source.second, {}, {}} {
    check_environment();
    std::copy(scale.begin(), scale.end(), plan_.scale);
    std::copy(shift.begin(), shift.end(), plan_.shift);
    raise_if_error(check_pixels_plan(plan_));
    const size_t bytes = pixels_scratch_bytes(plan_);
    std::memset(scratch_.at_least(static_cast<int64_t>(bytes)), 0xff, bytes);  // NaN: what it holds must not matter
    result_ = new_array<float>({3, plan_.height, plan_.width});
  }

  // uint8 [H, W, 3] or float32 [3, H, W] with any strides -> float32 [3, height, width], the same array every time.
  Array<float> prepare(const py::array& image) {
    const TensorView view = view_of(image);
    float* result = result_.mutable_data();
    Status status;
    {
      py::gil_scoped_release release;
      status = prepare_pixels(plan_, view, scratch_.data(), result);
    }
    raise_if_error(status);
    return result_;
  }

 private:
  PixelsPlan plan_;
  Buffer<char> scratch_;
  Array<float> result_;
};

}  // namespace

void bind_pixels(py::module_& m) {
  py::class_<Pixels>(m, "Pixels")
      .def(py::init<std::pair<int64_t, int64_t>, std::pair<int64_t, int64_t>, const std::array<float, 3>&,
                    const std::array<float, 3>&>(),
           py::arg("size"), py::arg("max_source"), py::arg("scale"), py::arg("shift"))
      .def("prepare", &Pixels::prepare, py::arg("image"));
}

}  // namespace dvt::bindings

// Views of an image, made on a device from arrays that lie there.
#include <pybind11/stl.h>

#include "bindings/convert.h"
#include "bindings/device_array.h"
#include "cuda/backend.h"
#include "field/views/views.h"

namespace dvt::bindings {
namespace {

// A request without memory of the device, and what it points to.
struct Request {
  ViewsRequest views;
  Array<double> boxes;
  Array<uint8_t> mirrored;
};

// image, out: tensors on the device; boxes [V, 4] and mirrored [V] in main memory.
Request make_request(const TensorView& image, const TensorView& out, const Array<double>& boxes,
                     const Array<uint8_t>& mirrored) {
  if (boxes.ndim() != 2 || boxes.shape(1) != 4 || mirrored.ndim() != 1 || mirrored.shape(0) != boxes.shape(0))
    raise_if_error(invalid_argument("boxes must have shape [V, 4] and mirrored [V]"));
  if (out.rank != 4 || out.shape[0] != boxes.shape(0) || out.shape[1] != 3)
    raise_if_error(invalid_argument("the result of views must have shape [", boxes.shape(0), ", 3, height, width]"));
  int64_t stride = 1;
  for (int axis = 3; axis >= 0; stride *= out.shape[axis--])
    if (out.shape[axis] > 1 && out.strides[axis] != stride)
      raise_if_error(invalid_argument("the result of views must be contiguous"));
  Request request{{}, boxes, mirrored};
  request.views.image = image;
  request.views.views = boxes.shape(0);
  request.views.boxes = request.boxes.data();
  request.views.mirrored = request.mirrored.data();
  request.views.height = out.shape[2];
  request.views.width = out.shape[3];
  request.views.type = out.dtype;
  request.views.out = out.data;
  return request;
}

// Enqueues the views on `stream`. workspace: None, or an array on the device of at least the bytes that are returned;
// with None nothing is done.
size_t cuda_views(const py::object& image, const py::object& out, const Array<double>& boxes,
                  const Array<uint8_t>& mirrored, const std::array<float, 3>& scale, const std::array<float, 3>& shift,
                  bool columns_first, const py::object& workspace, int device, uintptr_t stream) {
  const DeviceArray from = device_array(image, "image", device), to = device_array(out, "out", device);
  Request request = make_request(from.view, to.view, boxes, mirrored);
  ViewsRequest& views = request.views;
  std::copy(scale.begin(), scale.end(), views.scale);
  std::copy(shift.begin(), shift.end(), views.shift);
  views.columns_first = columns_first;
  views.stream = reinterpret_cast<void*>(stream);
  const cuda::Backend& backend = cuda_backend();
  size_t bytes = 0;
  raise_if_error(backend.views_workspace_bytes(views, &bytes));
  if (workspace.is_none()) return bytes;
  const DeviceArray space = device_array(workspace, "workspace", device);
  views.workspace = space.view.data;
  views.workspace_bytes = static_cast<size_t>(space.view.shape[0] * size_of(space.view.dtype));
  Status status;
  {
    py::gil_scoped_release release;
    status = backend.make_views(device, views);
  }
  raise_if_error(status);
  return bytes;
}

}  // namespace

void bind_cuda_views(py::module_& m) {
  m.def("cuda_views", &cuda_views, py::arg("image"), py::arg("out"), py::arg("boxes"), py::arg("mirrored"),
        py::arg("scale"), py::arg("shift"), py::arg("columns_first"), py::arg("workspace") = py::none(),
        py::arg("device") = 0, py::arg("stream") = 0);
}

}  // namespace dvt::bindings

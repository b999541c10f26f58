// The hash grid on arrays that lie on a CUDA device. All of them float32 and contiguous; nothing is waited for.
#include "bindings/device_array.h"
#include "field/hash_grid/hash_grid.h"

namespace dvt::bindings {
namespace {

// The array's memory, once it has that many float32 in a row.
float* floats(const py::object& object, const char* name, int device, int64_t count, std::vector<DeviceArray>* keep) {
  keep->push_back(device_array(object, name, device));
  const TensorView& view = keep->back().view;
  int64_t found = 1, stride = 1;
  bool contiguous = view.dtype == Dtype::float32;
  for (int i = view.rank - 1; i >= 0; --i) {
    contiguous = contiguous && (view.shape[i] <= 1 || view.strides[i] == stride);
    stride *= view.shape[i];
    found *= view.shape[i];
  }
  if (!contiguous || found != count)
    raise_if_error(invalid_argument(name, " must be ", count, " contiguous float32, got ", found, " of ",
                                    dtype_name(view.dtype), contiguous ? "" : ", not contiguous"));
  return static_cast<float*>(view.data);
}

void forward(const HashGrid& grid, const py::object& coords, const py::object& params, const py::object& out, int64_t n,
             int device, uintptr_t stream) {
  std::vector<DeviceArray> keep;
  const float* at = floats(coords, "coords", device, n * grid.n_dims, &keep);
  const float* from = floats(params, "params", device, grid.n_params(), &keep);
  float* to = floats(out, "out", device, n * grid.n_outputs(), &keep);
  raise_if_error(cuda_backend().hash_grid_forward(device, grid, at, from, n, to, reinterpret_cast<void*>(stream)));
}

// workspace: None, or bytes as `cuda_hash_grid_workspace` says, for sums in fixed point.
void backward_params(const HashGrid& grid, const py::object& coords, const py::object& d_out,
                     const py::object& d_params, int64_t n, const py::object& workspace, int device, uintptr_t stream) {
  std::vector<DeviceArray> keep;
  const float* at = floats(coords, "coords", device, n * grid.n_dims, &keep);
  const float* from = floats(d_out, "d_out", device, n * grid.n_outputs(), &keep);
  float* to = floats(d_params, "d_params", device, grid.n_params(), &keep);
  void* space = nullptr;
  if (!workspace.is_none()) {
    keep.push_back(device_array(workspace, "workspace", device));
    const TensorView& view = keep.back().view;
    if (view.rank != 1 || view.shape[0] * size_of(view.dtype) < cuda_backend().hash_grid_workspace(grid))
      raise_if_error(invalid_argument("workspace must have ", cuda_backend().hash_grid_workspace(grid), " bytes"));
    space = view.data;
  }
  raise_if_error(
      cuda_backend().hash_grid_backward_params(device, grid, at, from, n, to, space, reinterpret_cast<void*>(stream)));
}

void backward_coords(const HashGrid& grid, const py::object& coords, const py::object& params, const py::object& d_out,
                     const py::object& d_coords, int64_t n, int device, uintptr_t stream) {
  std::vector<DeviceArray> keep;
  const float* at = floats(coords, "coords", device, n * grid.n_dims, &keep);
  const float* from = floats(params, "params", device, grid.n_params(), &keep);
  const float* d = floats(d_out, "d_out", device, n * grid.n_outputs(), &keep);
  float* to = floats(d_coords, "d_coords", device, n * grid.n_dims, &keep);
  raise_if_error(
      cuda_backend().hash_grid_backward_coords(device, grid, at, from, d, n, to, reinterpret_cast<void*>(stream)));
}

}  // namespace

void bind_cuda_hash_grid(py::module_& m) {
  m.def("cuda_hash_grid_forward", &forward);
  m.def("cuda_hash_grid_backward_params", &backward_params);
  m.def("cuda_hash_grid_backward_coords", &backward_coords);
  m.def("cuda_hash_grid_workspace", [](const HashGrid& grid) { return cuda_backend().hash_grid_workspace(grid); });
}

}  // namespace dvt::bindings

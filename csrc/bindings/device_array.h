// Arrays in device memory, between Python and the CUDA backend.
#pragma once

#include "bindings/convert.h"
#include "core/tensor.h"
#include "cuda/backend.h"

namespace dvt::bindings {

// The CUDA library; raises the reason where there is none.
const cuda::Backend& cuda_backend();

// An array on a device: memory of its own, or a view of somebody else's (a torch tensor, anything with DLPack), which
// `owner` keeps alive.
struct DeviceArray {
  TensorView view;
  int device = 0;
  std::shared_ptr<void> memory;  // where it is the array's own
  py::object owner;
};

// The view of `object` (a DeviceArray, or whatever speaks DLPack), which must lie on `device`; raises InputError that
// names `name` otherwise. With the emulator arrays in main memory lie on the device.
DeviceArray device_array(const py::object& object, const char* name, int device);
// The same, and InputError where its elements do not lie in a row.
DeviceArray contiguous_device_array(const py::object& object, const char* name, int device);
// A new one, contiguous.
DeviceArray new_device_array(std::vector<int64_t> shape, Dtype dtype, int device);

void bind_device_array(py::module_& m);
void bind_cuda(py::module_& m);
void bind_cuda_direct(py::module_& m);
void bind_cuda_engine(py::module_& m);
void bind_cuda_hash_grid(py::module_& m);
void bind_cuda_hashgrid(py::module_& m);
void bind_cuda_views(py::module_& m);

}  // namespace dvt::bindings

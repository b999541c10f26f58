// DLPack in and out (https://dmlc.github.io/dlpack/latest/c_api.html), the unversioned capsule that every library
// reads.
#include "bindings/device_array.h"

#include <pybind11/stl.h>

#include <optional>

namespace dvt::bindings {
namespace {

enum : int32_t { kDLCPU = 1, kDLCUDA = 2, kDLCUDAHost = 3, kDLCUDAManaged = 13 };
enum : uint8_t { kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4 };

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

std::optional<Dtype> dtype_from(uint8_t code, int bits) {
  if (code == kDLFloat && bits == 32) return Dtype::float32;
  if (code == kDLFloat && bits == 16) return Dtype::float16;
  if (code == kDLBfloat && bits == 16) return Dtype::bfloat16;
  if (code == kDLUInt && bits == 8) return Dtype::uint8;
  return std::nullopt;
}

void set_contiguous(TensorView* view) {
  int64_t stride = 1;
  for (int i = view->rank - 1; i >= 0; --i) {
    view->strides[i] = stride;
    stride *= view->shape[i];
  }
}

void check_rank(int rank, const char* name) {
  if (rank < 1 || rank > kMaxRank)
    raise_if_error(invalid_argument(name, " must have 1 to ", kMaxRank, " dimensions, got ", rank));
}

DeviceArray from_numpy(const py::array& array, const char* name, int device) {
  DeviceArray out;
  const char kind = array.dtype().kind();
  const int code = kind == 'f' ? int{kDLFloat} : kind == 'u' ? int{kDLUInt} : 255;
  const auto dtype = dtype_from(static_cast<uint8_t>(code), static_cast<int>(array.itemsize()) * 8);
  if (!dtype)
    raise_if_error(invalid_argument(name, " must be float32, float16, bfloat16 or uint8, got ",
                                    py::str(static_cast<py::object>(array.dtype())).cast<std::string>()));
  check_rank(static_cast<int>(array.ndim()), name);
  out.view.dtype = *dtype;
  out.view.rank = static_cast<int>(array.ndim());
  for (int i = 0; i < out.view.rank; ++i) {
    out.view.shape[i] = array.shape(i);
    out.view.strides[i] = array.strides(i) / array.itemsize();
  }
  out.view.data = const_cast<void*>(array.data());
  out.device = device;
  out.owner = array;
  return out;
}

// Takes over the capsule's tensor, whose owner is told when the array goes.
DeviceArray from_capsule(const py::object& capsule, const char* name, int device) {
  if (!PyCapsule_IsValid(capsule.ptr(), "dltensor"))
    raise_if_error(invalid_argument(name, " gave no DLPack tensor that can be read"));
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  DeviceArray out;
  out.memory = std::shared_ptr<void>(managed, [](void* p) {
    auto* tensor = static_cast<DLManagedTensor*>(p);
    if (tensor->deleter) tensor->deleter(tensor);
  });
  const DLTensor& t = managed->tensor;
  const auto dtype = t.lanes == 1 ? dtype_from(t.code, t.bits) : std::nullopt;
  if (!dtype)
    raise_if_error(invalid_argument(name, " must be float32, float16, bfloat16 or uint8, got DLPack type ", int{t.code},
                                    " of ", int{t.bits}, " bits"));
  check_rank(t.ndim, name);
  out.view.dtype = *dtype;
  out.view.rank = t.ndim;
  std::copy_n(t.shape, t.ndim, out.view.shape);
  if (t.strides)
    std::copy_n(t.strides, t.ndim, out.view.strides);
  else
    set_contiguous(&out.view);
  out.view.data = static_cast<char*>(t.data) + t.byte_offset;
  out.device = device;
  return out;
}

// What a capsule made here holds on to.
struct Exported {
  DLManagedTensor managed{};
  DeviceArray array;
  int64_t shape[kMaxRank], strides[kMaxRank];
};

py::capsule to_capsule(const DeviceArray& array) {
  auto exported = std::make_unique<Exported>();
  exported->array = array;
  DLTensor& t = exported->managed.tensor;
  t.data = array.view.data;
  const bool on_cpu = cuda_backend().emulated();
  t.device_type = on_cpu ? kDLCPU : kDLCUDA;
  t.device_id = on_cpu ? 0 : array.device;
  t.ndim = array.view.rank;
  t.code = array.view.dtype == Dtype::bfloat16 ? kDLBfloat : array.view.dtype == Dtype::uint8 ? kDLUInt : kDLFloat;
  t.bits = static_cast<uint8_t>(8 * size_of(array.view.dtype));
  t.lanes = 1;
  std::copy_n(array.view.shape, t.ndim, exported->shape);
  std::copy_n(array.view.strides, t.ndim, exported->strides);
  t.shape = exported->shape;
  t.strides = exported->strides;
  exported->managed.context = exported.get();
  exported->managed.deleter = [](DLManagedTensor* managed) {
    const py::gil_scoped_acquire gil;
    delete static_cast<Exported*>(managed->context);
  };
  return py::capsule(&exported.release()->managed, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // somebody took it over
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  });
}

int64_t bytes_of(const TensorView& view) {
  int64_t count = size_of(view.dtype);
  for (int i = 0; i < view.rank; ++i) count *= view.shape[i];
  return count;
}

Dtype parse_dtype(const std::string& name) {
  for (const Dtype dtype : {Dtype::float32, Dtype::float16, Dtype::bfloat16, Dtype::uint8})
    if (name == dtype_name(dtype)) return dtype;
  raise_if_error(invalid_argument("dtype must be float32, float16, bfloat16 or uint8, got '", name, "'"));
  return Dtype::float32;
}

bool is_contiguous(const TensorView& view) {
  TensorView same = view;
  set_contiguous(&same);
  for (int i = 0; i < view.rank; ++i)
    if (view.shape[i] > 1 && view.strides[i] != same.strides[i]) return false;
  return true;
}

// The array's memory as a NumPy array of the same size; bfloat16 as uint16.
py::array to_numpy(const DeviceArray& array, uintptr_t stream) {
  if (!is_contiguous(array.view)) raise_if_error(invalid_argument("only a contiguous array can be copied to NumPy"));
  const char* dtype = array.view.dtype == Dtype::float32   ? "float32"
                      : array.view.dtype == Dtype::float16 ? "float16"
                      : array.view.dtype == Dtype::uint8   ? "uint8"
                                                           : "uint16";
  py::array out(py::dtype(dtype), std::vector<py::ssize_t>(array.view.shape, array.view.shape + array.view.rank));
  const cuda::Backend& backend = cuda_backend();
  Status status;
  {
    void* const to = out.mutable_data();
    py::gil_scoped_release release;
    status = backend.copy(array.device, to, array.view.data, bytes_of(array.view), reinterpret_cast<void*>(stream));
    if (status.ok()) status = backend.synchronise(array.device, reinterpret_cast<void*>(stream));
  }
  raise_if_error(status);
  return out;
}

}  // namespace

DeviceArray new_device_array(std::vector<int64_t> shape, Dtype dtype, int device) {
  check_rank(static_cast<int>(shape.size()), "shape");
  DeviceArray out;
  out.view.dtype = dtype;
  out.view.rank = static_cast<int>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < 0) raise_if_error(invalid_argument("shape must not have negative extents"));
    out.view.shape[i] = shape[i];
  }
  set_contiguous(&out.view);
  out.device = device;
  const cuda::Backend* backend = &cuda_backend();
  raise_if_error(backend->allocate(device, bytes_of(out.view), &out.view.data));
  out.memory = std::shared_ptr<void>(out.view.data, [=](void* p) { backend->release(device, p); });
  return out;
}

DeviceArray device_array(const py::object& object, const char* name, int device) {
  if (py::isinstance<DeviceArray>(object)) {
    auto array = object.cast<DeviceArray>();
    if (array.device != device)
      raise_if_error(invalid_argument(name, " is on device 'cuda:", array.device, "', expected 'cuda:", device, "'"));
    return array;
  }
  const cuda::Backend& backend = cuda_backend();
  if (py::isinstance<py::array>(object)) {
    if (backend.emulated()) return from_numpy(object.cast<py::array>(), name, device);
    raise_if_error(invalid_argument(name, " is in main memory, expected an array on device 'cuda:", device, "'"));
  }
  if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__"))
    raise_if_error(invalid_argument(name, " must be an array on device 'cuda:", device, "' that speaks DLPack, got ",
                                    py::str(py::type::of(object).attr("__name__")).cast<std::string>()));
  const auto [type, index] = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  const bool managed = type == kDLCUDAManaged;
  if (backend.emulated() ? type != kDLCPU : (type != kDLCUDA && !managed))
    raise_if_error(invalid_argument(name, " is not on a CUDA device (DLPack device type ", type,
                                    "), expected 'cuda:", device, "'"));
  if (!backend.emulated() && index != device)
    raise_if_error(invalid_argument(name, " is on device 'cuda:", index, "', expected 'cuda:", device, "'"));
  // -1: nobody waits. Work goes to a stream of the caller's, who sees to it that what is read there is ready.
  const py::object capsule =
      backend.emulated() ? object.attr("__dlpack__")() : object.attr("__dlpack__")(py::arg("stream") = -1);
  return from_capsule(capsule, name, device);
}

DeviceArray contiguous_device_array(const py::object& object, const char* name, int device) {
  DeviceArray array = device_array(object, name, device);
  if (!is_contiguous(array.view)) raise_if_error(invalid_argument(name, " must be contiguous: give a copy"));
  return array;
}

void bind_device_array(py::module_& m) {
  py::class_<DeviceArray>(m, "DeviceArray")
      .def(py::init([](std::vector<int64_t> shape, const std::string& dtype, int device) {
             return new_device_array(std::move(shape), parse_dtype(dtype), device);
           }),
           py::arg("shape"), py::arg("dtype") = "float32", py::arg("device") = 0)
      .def_static(
          "from_numpy",
          [](const py::array& array, const std::string& dtype, int device, uintptr_t stream) {
            if (!(array.flags() & py::array::c_style)) raise_if_error(invalid_argument("array must be contiguous"));
            DeviceArray out = new_device_array(std::vector<int64_t>(array.shape(), array.shape() + array.ndim()),
                                               parse_dtype(dtype), device);
            if (array.itemsize() != size_of(out.view.dtype))
              raise_if_error(invalid_argument("array has numbers of ", array.itemsize(), " bytes, and ", dtype, " has ",
                                              size_of(out.view.dtype)));
            const cuda::Backend& backend = cuda_backend();
            raise_if_error(
                backend.copy(device, out.view.data, array.data(), bytes_of(out.view), reinterpret_cast<void*>(stream)));
            raise_if_error(backend.synchronise(device, reinterpret_cast<void*>(stream)));
            return out;
          },
          py::arg("array"), py::arg("dtype") = "float32", py::arg("device") = 0, py::arg("stream") = 0)
      .def_static(
          "of",
          [](const py::object& object, const std::string& name, int device) {
            return device_array(object, name.c_str(), device);
          },
          py::arg("object"), py::arg("name") = "array", py::arg("device") = 0)
      .def("numpy", &to_numpy, py::arg("stream") = 0)
      .def("reshape",
           [](const DeviceArray& self, const std::vector<int64_t>& shape) {
             check_rank(static_cast<int>(shape.size()), "shape");
             if (!is_contiguous(self.view)) raise_if_error(invalid_argument("only a contiguous array can be reshaped"));
             DeviceArray out = self;
             out.view.rank = static_cast<int>(shape.size());
             std::copy(shape.begin(), shape.end(), out.view.shape);
             set_contiguous(&out.view);
             if (bytes_of(out.view) != bytes_of(self.view))
               raise_if_error(invalid_argument("a reshaped array must keep its ", bytes_of(self.view), " bytes, got ",
                                               bytes_of(out.view)));
             return out;
           })
      .def("__getitem__",
           [](const DeviceArray& self, int64_t index) {
             const int64_t extent = self.view.shape[0];
             if (self.view.rank < 2 || index < -extent || index >= extent)
               throw py::index_error("an index along the first of two or more dimensions is expected");
             DeviceArray out = self;
             out.view.rank -= 1;
             std::copy_n(self.view.shape + 1, out.view.rank, out.view.shape);
             std::copy_n(self.view.strides + 1, out.view.rank, out.view.strides);
             const int64_t at = (index < 0 ? index + extent : index) * self.view.strides[0];
             out.view.data = static_cast<char*>(self.view.data) + at * size_of(self.view.dtype);
             return out;
           })
      .def_property_readonly("shape",
                             [](const DeviceArray& self) {
                               py::tuple shape(self.view.rank);
                               for (int i = 0; i < self.view.rank; ++i)
                                 shape[static_cast<size_t>(i)] = self.view.shape[i];
                               return shape;
                             })
      .def_property_readonly("ndim", [](const DeviceArray& self) { return self.view.rank; })
      .def_property_readonly("dtype", [](const DeviceArray& self) { return dtype_name(self.view.dtype); })
      .def_property_readonly("device", [](const DeviceArray& self) { return self.device; })
      .def_property_readonly("pointer",
                             [](const DeviceArray& self) { return reinterpret_cast<uintptr_t>(self.view.data); })
      .def("__dlpack_device__",
           [](const DeviceArray& self) {
             const bool on_cpu = cuda_backend().emulated();
             return py::make_tuple(static_cast<int>(on_cpu ? kDLCPU : kDLCUDA), on_cpu ? 0 : self.device);
           })
      .def(
          "__dlpack__", [](const DeviceArray& self, const py::kwargs&) { return to_capsule(self); },
          "Nobody waits: the reader's stream must follow the one that the array was written on.");
}

}  // namespace dvt::bindings

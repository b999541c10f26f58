// The CUDA backend: what is there, arrays on a device, and ops by name for tests.
#include <pybind11/stl.h>

#include "bindings/convert.h"
#include "bindings/device_array.h"
#include "cuda/backend.h"

namespace dvt::bindings {
namespace {

cuda::OpType op_type(const py::array& array, const std::string& name, const std::map<std::string, std::string>& types) {
  const auto named = types.find(name);
  const std::string text =
      named != types.end() ? named->second : py::str(static_cast<py::object>(array.dtype())).cast<std::string>();
  for (const auto type : {cuda::OpType::float32, cuda::OpType::float16, cuda::OpType::bfloat16, cuda::OpType::uint8,
                          cuda::OpType::int32, cuda::OpType::uint32, cuda::OpType::int64, cuda::OpType::float64})
    if (text == cuda::op_type_name(type)) {
      if (cuda::op_type_size(type) == array.itemsize()) return type;
      raise_if_error(invalid_argument(name, " has numbers of ", array.itemsize(), " bytes, and ", text, " has ",
                                      cuda::op_type_size(type)));
    }
  raise_if_error(invalid_argument(name, " is of a type that no op takes: ", text));
  return cuda::OpType::float32;
}

cuda::HostTensor host_tensor(const std::string& name, const py::array& array,
                             const std::map<std::string, std::string>& types) {
  if (!(array.flags() & py::array::c_style)) raise_if_error(invalid_argument(name, " must be contiguous"));
  cuda::HostTensor tensor;
  tensor.name = name;
  tensor.type = op_type(array, name, types);
  tensor.shape.assign(array.shape(), array.shape() + array.ndim());
  tensor.data = const_cast<void*>(array.data());
  return tensor;
}

// inputs are copied to the device; outputs are filled with NaN bytes there and copied back; those in both are both.
void cuda_op(const std::string& name, const std::map<std::string, py::array>& inputs,
             const std::map<std::string, py::array>& outputs, const cuda::OpNumbers& numbers,
             const cuda::OpWords& words, const std::map<std::string, std::string>& types, int device, int repeat) {
  std::vector<cuda::HostTensor> tensors;
  for (const auto& [key, array] : inputs)
    if (!outputs.count(key)) tensors.push_back(host_tensor(key, array, types));
  for (const auto& [key, array] : outputs) {
    if (!array.writeable()) raise_if_error(invalid_argument(key, " cannot be written to"));
    tensors.push_back(host_tensor(key, array, types));
    tensors.back().is_output = true;
    tensors.back().is_input = inputs.count(key) > 0;
  }
  const cuda::Backend& backend = cuda_backend();
  Status status;
  {
    py::gil_scoped_release release;
    status = backend.run_op(device, name, tensors, numbers, words, repeat);
  }
  raise_if_error(status);
}

py::dict describe(const cuda::Device& device) {
  py::dict d;
  d["index"] = device.index;
  d["name"] = device.name;
  d["capability"] = py::make_tuple(device.major, device.minor);
  d["memory"] = device.memory;
  d["multiprocessors"] = device.multiprocessors;
  d["problem"] = device.problem;
  return d;
}

}  // namespace

const cuda::Backend& cuda_backend() {
  const cuda::Backend* backend = nullptr;
  raise_if_error(cuda::load_backend(&backend));
  return *backend;
}

void bind_cuda(py::module_& m) {
  m.def("cuda_devices", [] {
    std::vector<cuda::Device> devices;
    raise_if_error(cuda_backend().devices(&devices));
    py::list out;
    for (const cuda::Device& device : devices) out.append(describe(device));
    return out;
  });
  m.def("cuda_check_device", [](int device) { raise_if_error(cuda_backend().check_device(device)); });
  m.def("cuda_info", [] {
    const cuda::Backend& backend = cuda_backend();
    py::dict d;
    d["emulated"] = backend.emulated();
    d["runtime"] = backend.runtime_version();
    d["driver"] = backend.driver_version();
    d["architectures"] = backend.architectures();
    return d;
  });
  m.def("cuda_memory", [](int device) {
    int64_t free = 0, total = 0;
    raise_if_error(cuda_backend().memory_info(device, &free, &total));
    return py::make_tuple(free, total);
  });
  m.def(
      "cuda_synchronize",
      [](int device, uintptr_t stream) {
        const cuda::Backend& backend = cuda_backend();
        Status status;
        {
          py::gil_scoped_release release;
          status = backend.synchronise(device, reinterpret_cast<void*>(stream));
        }
        raise_if_error(status);
      },
      py::arg("device") = 0, py::arg("stream") = 0);
  m.def("cuda_ops", [] { return cuda_backend().ops(); });
  m.def("cuda_op", &cuda_op, py::arg("name"), py::arg("inputs"), py::arg("outputs"),
        py::arg("numbers") = cuda::OpNumbers(), py::arg("words") = cuda::OpWords(),
        py::arg("types") = std::map<std::string, std::string>(), py::arg("device") = 0, py::arg("repeat") = 1);
  bind_device_array(m);
}

}  // namespace dvt::bindings

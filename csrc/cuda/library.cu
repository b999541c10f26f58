// What libdvt_fast_cuda.so exports: the backend, see backend.h.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "cuda/backend.h"
#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "field/decomposition/decomposition_cuda.h"
#include "field/hash_grid/hash_grid_cuda.h"
#include "field/views/views_cuda.h"

#if !defined(DVT_CUDA_ARCHITECTURES)
#define DVT_CUDA_ARCHITECTURES ""
#endif

namespace dvt::cuda {
namespace {

constexpr int kOldestMajor = 8;

std::string version_text(int version) {  // CUDA counts 1000 * major + 10 * minor
  return format(version / 1000, ".", version % 1000 / 10);
}

// Why there is no device, in one line.
Status explain_no_devices(cudaError_t error) {
  cudaGetLastError();
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (error == cudaErrorInsufficientDriver && driver == 0)
    return Status(StatusCode::unsupported, "no NVIDIA driver was found: install one, or compute with device='cpu'");
  if (error == cudaErrorInsufficientDriver)
    return Status(StatusCode::unsupported, format("the NVIDIA driver is too old: it supports CUDA ",
                                                  version_text(driver), ", and CUDA ", CUDART_VERSION / 1000,
                                                  " or newer is needed: update the driver, or compute with "
                                                  "device='cpu'"));
  if (error == cudaErrorNoDevice || error == cudaSuccess) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return Status(StatusCode::unsupported, format("the NVIDIA driver shows no device",
                                                  visible ? format(" (CUDA_VISIBLE_DEVICES is '", visible, "')") : ""));
  }
  return check(error, "finding CUDA devices");
}

class Library final : public Backend {
 public:
  Status devices(std::vector<Device>* out) const override {
    out->clear();
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) return explain_no_devices(error);
    for (int i = 0; i < count; ++i) {
      cudaDeviceProp properties;
      DVT_CUDA(cudaGetDeviceProperties(&properties, i), "reading the properties of a device");
      Device device;
      device.index = i;
      device.name = properties.name;
      device.major = properties.major;
      device.minor = properties.minor;
      device.memory = static_cast<int64_t>(properties.totalGlobalMem);
      device.multiprocessors = properties.multiProcessorCount;
      if (device.major < kOldestMajor)
        device.problem = format("device ", i, " (", device.name, ") has compute capability ", device.major, ".",
                                device.minor, ", and ", kOldestMajor, ".0 or newer is needed");
      out->push_back(std::move(device));
    }
    return Status();
  }

  Status check_device(int index) const override {
    std::vector<Device> found;
    DVT_RETURN_IF_ERROR(devices(&found));
    if (index < 0 || static_cast<size_t>(index) >= found.size())
      return invalid_argument("device 'cuda:", index, "' does not exist: there ", found.size() == 1 ? "is " : "are ",
                              found.size(), found.size() == 1 ? " device" : " devices", ", counted from 0");
    const std::string& problem = found[static_cast<size_t>(index)].problem;
    return problem.empty() ? Status() : Status(StatusCode::unsupported, problem);
  }

#if defined(DVT_CUDA_EMULATOR)
  bool emulated() const override { return true; }
#else
  bool emulated() const override { return false; }
#endif

  std::string runtime_version() const override { return version_text(CUDART_VERSION); }
  std::string driver_version() const override {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess && version > 0 ? version_text(version) : "";
  }
  std::string architectures() const override { return DVT_CUDA_ARCHITECTURES; }

  Status allocate(int device, int64_t bytes, void** out) const override {
    *out = nullptr;
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    auto memory = std::make_unique<DeviceMemory>();
    DVT_RETURN_IF_ERROR(memory->allocate(static_cast<size_t>(std::max<int64_t>(1, bytes)), "an array"));
    *out = memory->detach();
    return Status();
  }
  void release(int device, void* memory) const override {
    const DeviceGuard guard(device);
    cudaFree(memory);
  }

  Status copy(int device, void* to, const void* from, int64_t bytes, void* stream) const override {
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    return check(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
        "copying");
  }
  Status synchronise(int device, void* stream) const override {
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    return check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the device");
  }
  Status device_of(const void* pointer, int* device) const override {
    cudaPointerAttributes attributes;
    DVT_CUDA(cudaPointerGetAttributes(&attributes, pointer), "finding where an array lies");
    const bool on_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    *device = on_device ? attributes.device : -1;
    return Status();
  }
  Status memory_info(int device, int64_t* free, int64_t* total) const override {
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    size_t f = 0, t = 0;
    DVT_CUDA(cudaMemGetInfo(&f, &t), "reading how much memory is free");
    *free = static_cast<int64_t>(f);
    *total = static_cast<int64_t>(t);
    return Status();
  }

  Status views_workspace_bytes(const ViewsRequest& request, size_t* bytes) const override {
    return cuda::views_workspace_bytes(request, bytes);
  }
  Status make_views(int device, const ViewsRequest& request) const override {
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    return views_forward(request);
  }

  Status hash_grid_forward(int device, const HashGrid& grid, const float* coords, const float* params, int64_t n,
                           float* out, void* stream) const override {
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    return cuda::hash_grid_forward(grid, coords, params, n, out, static_cast<cudaStream_t>(stream));
  }
  Status hash_grid_backward_params(int device, const HashGrid& grid, const float* coords, const float* d_out, int64_t n,
                                   float* d_params, void* workspace, void* stream) const override {
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    return cuda::hash_grid_backward_params(grid, coords, d_out, n, d_params, workspace,
                                           static_cast<cudaStream_t>(stream));
  }
  Status hash_grid_backward_coords(int device, const HashGrid& grid, const float* coords, const float* params,
                                   const float* d_out, int64_t n, float* d_coords, void* stream) const override {
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    return cuda::hash_grid_backward_coords(grid, coords, params, d_out, n, d_coords, static_cast<cudaStream_t>(stream));
  }
  int64_t hash_grid_workspace(const HashGrid& grid) const override { return cuda::hash_grid_workspace(grid); }

  Status make_hashgrid_fitter(const HashgridCudaOptions& options, const HashgridCudaProblem& problem,
                              std::unique_ptr<HashgridFitterCuda>* out) const override {
    return cuda::make_hashgrid_fitter(options, problem, out);
  }
  Status run_hashgrid_fitters(const std::vector<HashgridFitterCuda*>& fitters, int64_t count, int64_t report_every,
                              const std::function<bool(int64_t, int64_t, int64_t, double)>& progress) const override {
    return cuda::run_hashgrid_fitters(fitters, count, report_every, progress);
  }

  Status create_direct_solver(const DirectSetup& setup, std::unique_ptr<DirectSolverCuda>* out) const override {
    return cuda::create_direct_solver(setup, out);
  }
  Status query_field(int device, GridShape grid, int64_t channels, const float* nodes, int64_t count,
                     const float* coords, float* out, void* stream) const override {
    return cuda::query_field(device, grid, channels, nodes, count, coords, out, stream);
  }
  Status field_patch_means(int device, GridShape grid, int64_t channels, const float* nodes, int64_t height,
                           int64_t width, const float* coords, float* out, void* stream) const override {
    return cuda::field_patch_means(device, grid, channels, nodes, height, width, coords, out, stream);
  }
  size_t gauge_workspace_bytes(int64_t patches, int64_t channels) const override {
    return cuda::gauge_workspace_bytes(patches, channels);
  }
  Status apply_gauge(int device, int64_t patches, int64_t channels, float* artifacts, int64_t nodes, float* node_values,
                     void* workspace, void* stream) const override {
    return cuda::apply_gauge(device, patches, channels, artifacts, nodes, node_values, workspace, stream);
  }
  Status residual(int device, const void* features, Dtype type, const float* semantics, const float* artifacts,
                  int64_t count, float* raw, float* out, void* stream) const override {
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    return residual_forward(features, type, semantics, artifacts, count, raw, out, static_cast<cudaStream_t>(stream));
  }

  Status create_engine_model(const EngineWeights& weights, EngineCompute compute, int device,
                             std::unique_ptr<EngineModelCuda>* out) const override {
    return cuda::create_engine_model(weights, compute, device, out);
  }

  std::vector<std::string> ops() const override { return registered_ops(); }

  Status run_op(int device, const std::string& name, std::vector<HostTensor>& tensors, const OpNumbers& numbers,
                const OpWords& words, int repeat) const override {
    const OpFunction op = find_op(name);
    if (!op) return invalid_argument("there is no op '", name, "'");
    DVT_RETURN_IF_ERROR(check_device(device));
    const DeviceGuard guard(device);
    DVT_RETURN_IF_ERROR(guard.status());
    OpCall call;
    call.device = device;
    call.numbers = numbers;
    call.words = words;
    std::vector<DeviceBuffer<char>> memory(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      OpTensor tensor;
      tensor.type = tensors[i].type;
      tensor.shape = tensors[i].shape;
      const int64_t bytes = tensor.count() * op_type_size(tensor.type);
      DVT_RETURN_IF_ERROR(memory[i].allocate(bytes, "an array of an op"));
      if (bytes > 0 && tensors[i].is_input) {
        DVT_RETURN_IF_ERROR(
            memory[i].upload(static_cast<const char*>(tensors[i].data), bytes, nullptr, "copying an array"));
      } else if (bytes > 0) {
        DVT_CUDA(cudaMemsetAsync(memory[i].data(), 0xff, static_cast<size_t>(bytes), nullptr), "filling an array");
      }
      tensor.data = memory[i].data();
      call.tensors[tensors[i].name] = std::move(tensor);
    }
    for (int i = 0; i < repeat; ++i) DVT_RETURN_IF_ERROR(op(call));
    DVT_CUDA(cudaStreamSynchronize(nullptr), name.c_str());
    for (size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].is_output && memory[i].count() > 0)
        DVT_RETURN_IF_ERROR(
            memory[i].download(static_cast<char*>(tensors[i].data), memory[i].count(), nullptr, "copying back"));
    return Status();
  }
};

}  // namespace
}  // namespace dvt::cuda

extern "C" __attribute__((visibility("default"))) const dvt::cuda::Backend* dvt_cuda_backend(int abi) {
  static const dvt::cuda::Library library;
  return abi == DVT_BACKEND_ABI ? &library : nullptr;
}

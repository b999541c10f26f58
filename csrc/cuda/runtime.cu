#include "cuda/runtime.h"

#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace dvt::cuda {
namespace {

// After these every further call fails the same way until the process ends (CUDA runtime API, "cudaError").
bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorUnknown: return true;
    default: return false;
  }
}

}  // namespace

Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return Status();
  cudaGetLastError();  // an error that is not sticky is reported here and nowhere else
  const char* name = cudaGetErrorName(error);
  const char* text = cudaGetErrorString(error);
  if (is_sticky(error))
    return Status(StatusCode::device_failed, format(what, ": the device failed (", name, ": ", text,
                                                    "); this process must be restarted before it can use CUDA again"));
  if (error == cudaErrorMemoryAllocation)
    return Status(StatusCode::out_of_memory, format(what, ": not enough device memory"));
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion)
    return Status(StatusCode::unsupported, format(what, ": this build has no code for the device (", name,
                                                  "): build it again with DVT_FAST_CUDA_ARCHITECTURES naming it"));
  return Status(StatusCode::internal, format(what, ": ", name, ": ", text));
}

namespace detail {

cudaError_t allow_shared(const void* kernel, size_t bytes) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  static std::mutex mutex;
  // The most that was asked for: it never goes down, because a launch that needs it may be on its way in a thread.
  static std::map<std::pair<const void*, int>, size_t> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return cudaSuccess;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error == cudaSuccess) most = bytes;
  return error;
}

}  // namespace detail

namespace detail {

bool can_overlap() {
  const DeviceTraits* traits = nullptr;
  return current_traits(&traits).ok() && traits->is_at_least(9);
}

}  // namespace detail

Status device_traits(int device, const DeviceTraits** traits) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<DeviceTraits>> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (device < 0) return invalid_argument("device must be 0 or more, got ", device);
  if (static_cast<size_t>(device) >= known.size()) known.resize(static_cast<size_t>(device) + 1);
  auto& slot = known[static_cast<size_t>(device)];
  if (!slot) {
    auto read = std::make_unique<DeviceTraits>();
    read->device = device;
    const auto get = [&](cudaDeviceAttr attribute, int* value) {
      return check(cudaDeviceGetAttribute(value, attribute, device), "reading the device's attributes");
    };
    int shared = 0;
    DVT_RETURN_IF_ERROR(get(cudaDevAttrComputeCapabilityMajor, &read->major));
    DVT_RETURN_IF_ERROR(get(cudaDevAttrComputeCapabilityMinor, &read->minor));
    DVT_RETURN_IF_ERROR(get(cudaDevAttrMultiProcessorCount, &read->multiprocessors));
    DVT_RETURN_IF_ERROR(get(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared));
    read->shared_per_block = static_cast<size_t>(shared);
    slot = std::move(read);
  }
  *traits = slot.get();
  return Status();
}

Status current_traits(const DeviceTraits** traits) {
  int device = 0;
  DVT_CUDA(cudaGetDevice(&device), "finding the current device");
  return device_traits(device, traits);
}

DeviceGuard::DeviceGuard(int device) {
  status_ = check(cudaGetDevice(&before_), "finding the current device");
  if (!status_.ok() || before_ == device) return;
  status_ = check(cudaSetDevice(device), "choosing the device");
  changed_ = status_.ok();
}

DeviceGuard::~DeviceGuard() {
  if (changed_) cudaSetDevice(before_);
}

Status DeviceMemory::allocate(size_t bytes, const char* what) {
  release();
  if (bytes == 0) return Status();
  DVT_CUDA(cudaGetDevice(&device_), what);
  const cudaError_t error = cudaMalloc(&data_, bytes);
  if (error == cudaErrorMemoryAllocation) {
    data_ = nullptr;
    cudaGetLastError();
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
    return Status(StatusCode::out_of_memory,
                  format("not enough device memory: ", what, " needs ", static_cast<double>(bytes) / 1e6, " MB, and ",
                         static_cast<double>(free) / 1e6, " MB of ", static_cast<double>(total) / 1e6, " MB are free"));
  }
  DVT_CUDA(error, what);
  bytes_ = bytes;
  return Status();
}

void DeviceMemory::release() {
  if (!data_) return;
  int before = 0;
  const bool known = cudaGetDevice(&before) == cudaSuccess;
  if (known && before != device_) cudaSetDevice(device_);
  cudaFree(data_);
  if (known && before != device_) cudaSetDevice(before);
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace dvt::cuda

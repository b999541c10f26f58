// Launches, errors and memory of a device, for launchers and whatever owns device memory. Errors of the CUDA runtime
// become statuses; a sticky one (after which every call fails until the process restarts) has a code of its own.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/status.h"

namespace dvt::cuda {

// A status for what a call of the runtime returned; `what` was being done: "copying features to the device".
Status check(cudaError_t error, const char* what);

#define DVT_CUDA(call, what) DVT_RETURN_IF_ERROR(::dvt::cuda::check((call), (what)))

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // all of it dynamic
  cudaStream_t stream = nullptr;
  bool overlap = false;      // may start before the previous kernel ends (sm_90 and newer), see ptx::wait_for_previous
  bool cooperative = false;  // all blocks run at once, so that they may wait for each other
  unsigned cluster = 1;      // sm_90: so many blocks along x run at once on neighbouring multiprocessors
};

namespace detail {
// More than 48 KB of shared memory has to be asked for, on each device.
cudaError_t allow_shared(const void* kernel, size_t bytes);
// Whether the current device lets a kernel start before the one before it ends.
bool can_overlap();
}  // namespace detail

// kernel<<<...>>>(args...). Nothing but the kernel is enqueued: it can be captured into a graph.
template <class... Params, class... Args>
Status launch(const char* name, void (*kernel)(Params...), const Launch& how, Args&&... args) {
  if (how.shared_bytes > 48 * 1024)
    DVT_CUDA(detail::allow_shared(reinterpret_cast<const void*>(kernel), how.shared_bytes), name);
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  cudaLaunchAttribute attributes[3];
  unsigned count = 0;
  if (how.overlap && detail::can_overlap()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (how.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = how.cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  config.attrs = attributes;
  config.numAttrs = count;
  return check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...), name);
}

// What a launcher needs to know of a device; read once a device.
struct DeviceTraits {
  int device = 0;
  int major = 0, minor = 0;
  int multiprocessors = 0;
  size_t shared_per_block = 0;  // the most that a kernel may ask for
  bool is_at_least(int m) const { return major >= m; }
};
// Of a device that exists.
Status device_traits(int device, const DeviceTraits** traits);
// Of the current device.
Status current_traits(const DeviceTraits** traits);

// Makes `device` the current one while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  const Status& status() const { return status_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  Status status_;
};

// Memory of the current device, owned; contents undefined. Allocation that fails is an out_of_memory status that says
// how much was asked for and how much is free, and leaves no sticky error.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(device_, other.device_);
    return *this;
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { release(); }

  Status allocate(size_t bytes, const char* what);
  void release();
  // Gives the memory to the caller, who frees it.
  void* detach() { return std::exchange(data_, nullptr); }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  int device_ = 0;
};

template <class T>
class DeviceBuffer {
 public:
  Status allocate(int64_t count, const char* what) {
    count_ = count;
    return memory_.allocate(static_cast<size_t>(count) * sizeof(T), what);
  }
  // On `stream`, which must be synchronised before `from` changes.
  Status upload(const T* from, int64_t count, cudaStream_t stream, const char* what) {
    return check(cudaMemcpyAsync(data(), from, static_cast<size_t>(count) * sizeof(T), cudaMemcpyHostToDevice, stream),
                 what);
  }
  Status download(T* to, int64_t count, cudaStream_t stream, const char* what) const {
    DVT_RETURN_IF_ERROR(check(
        cudaMemcpyAsync(to, data(), static_cast<size_t>(count) * sizeof(T), cudaMemcpyDeviceToHost, stream), what));
    return check(cudaStreamSynchronize(stream), what);
  }
  Status zero(cudaStream_t stream, const char* what) {
    return check(cudaMemsetAsync(data(), 0, static_cast<size_t>(count_) * sizeof(T), stream), what);
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  int64_t count() const { return count_; }

 private:
  DeviceMemory memory_;
  int64_t count_ = 0;
};

// Many pieces laid out one after the other in one allocation: first the sizes are added up, then the pieces handed out.
class Layout {
 public:
  static constexpr size_t kAlignment = 256;
  template <class T>
  size_t add(int64_t count) {
    const size_t at = bytes_;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace dvt::cuda

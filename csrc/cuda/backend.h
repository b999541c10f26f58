// The CUDA backend as the rest of the package sees it: a second library, libdvt_fast_cuda.so, behind one abstract class
// without a type of CUDA's. It is loaded when CUDA is first asked for, so that nothing needs a driver to be imported.
//
// Streams are cudaStream_t as void* (null: the default stream), memory is plain pointers to device memory. Nothing here
// changes the caller's current device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/op_types.h"

namespace dvt::cuda {

struct Device {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int64_t memory = 0;        // bytes of it
  int multiprocessors = 0;
  std::string problem;  // why this device cannot be used, or empty
};

// An array in main memory that an op reads or writes, for `run_op`.
struct HostTensor {
  std::string name;
  OpType type = OpType::float32;
  std::vector<int64_t> shape;
  void* data = nullptr;
  bool is_output = false;  // filled with NaN bytes on the device before the op, and copied back after it
  bool is_input = true;    // copied to the device before it
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Every device that the driver shows; an `unsupported` status, one line, where there is no driver or no device.
  virtual Status devices(std::vector<Device>* out) const = 0;
  // The same for one device, that it exists and can be used.
  virtual Status check_device(int device) const = 0;
  // Whether the library runs kernels on the CPU (tests/emulator): then device memory is main memory.
  virtual bool emulated() const = 0;
  // "13.0", and the driver's: "13.0", or "" without one.
  virtual std::string runtime_version() const = 0;
  virtual std::string driver_version() const = 0;
  // Compute capabilities that the library was compiled for: "80 86 90a".
  virtual std::string architectures() const = 0;

  // Memory of a device, for bindings and tests. `kind`: to the device, from it, or within it.
  virtual Status allocate(int device, int64_t bytes, void** out) const = 0;
  virtual void release(int device, void* memory) const = 0;
  enum class Copy { to_device, from_device, on_device };
  virtual Status copy(int device, Copy kind, void* to, const void* from, int64_t bytes, void* stream) const = 0;
  virtual Status synchronise(int device, void* stream) const = 0;
  // The device that `pointer` is memory of; -1 for main memory.
  virtual Status device_of(const void* pointer, int* device) const = 0;
  virtual Status memory_info(int device, int64_t* free, int64_t* total) const = 0;

  // An op by name (op_registry.h) on arrays in main memory, `repeat` times, for tests.
  virtual std::vector<std::string> ops() const = 0;
  virtual Status run_op(int device, const std::string& name, std::vector<HostTensor>& tensors, const OpNumbers& numbers,
                        const OpWords& words, int repeat) const = 0;
};

// The library, loaded once; where that fails a status that says why, again at every call. DVT_FAST_CUDA_LIBRARY names
// another file than the one beside this library.
Status load_backend(const Backend** out);

// What the library exports, as "dvt_cuda_backend". `abi` must be kBackendAbi: both come from one build.
constexpr int kBackendAbi = 1;
using BackendEntry = const Backend* (*)(int abi);

}  // namespace dvt::cuda

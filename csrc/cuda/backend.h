// The CUDA backend as the rest of the package sees it: a second library, libdvt_fast_cuda.so, behind one abstract class
// without a type of CUDA's. It is loaded when CUDA is first asked for, so that nothing needs a driver to be imported.
//
// Streams are cudaStream_t as void* (null: the default stream), memory is plain pointers to device memory. Nothing here
// changes the caller's current device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/op_types.h"
#include "engine/cuda/engine_backend.h"
#include "field/cuda/hashgrid_backend.h"
#include "field/direct_solver/direct_backend.h"
#include "field/views/views.h"

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

  // Memory of a device, for bindings and tests. Copies go either way, or within the device.
  virtual Status allocate(int device, int64_t bytes, void** out) const = 0;
  virtual void release(int device, void* memory) const = 0;
  virtual Status copy(int device, void* to, const void* from, int64_t bytes, void* stream) const = 0;
  virtual Status synchronise(int device, void* stream) const = 0;
  // The device that `pointer` is memory of; -1 for main memory.
  virtual Status device_of(const void* pointer, int* device) const = 0;
  virtual Status memory_info(int device, int64_t* free, int64_t* total) const = 0;

  // Views of an image, see field/views/views.h: only enqueues.
  virtual Status views_workspace_bytes(const ViewsRequest& request, size_t* bytes) const = 0;
  virtual Status make_views(int device, const ViewsRequest& request) const = 0;

  // The hash grid alone, see field/hash_grid/hash_grid.h: device memory, only enqueues. coords [N, D]; params, d_params
  // [entries, F], aligned to 16 bytes; out, d_out [N, L * F]. workspace: hash_grid_workspace bytes, and then d_params
  // is the same bits in every run; or null, faster.
  virtual Status hash_grid_forward(int device, const HashGrid& grid, const float* coords, const float* params,
                                   int64_t n, float* out, void* stream) const = 0;
  virtual Status hash_grid_backward_params(int device, const HashGrid& grid, const float* coords, const float* d_out,
                                           int64_t n, float* d_params, void* workspace, void* stream) const = 0;
  virtual Status hash_grid_backward_coords(int device, const HashGrid& grid, const float* coords, const float* params,
                                           const float* d_out, int64_t n, float* d_coords, void* stream) const = 0;
  virtual int64_t hash_grid_workspace(const HashGrid& grid) const = 0;

  // Stage 1, solver "hashgrid", see field/cuda/hashgrid_backend.h.
  virtual Status make_hashgrid_fitter(const HashgridCudaOptions& options, const HashgridCudaProblem& problem,
                                      std::unique_ptr<HashgridFitterCuda>* out) const = 0;
  virtual Status run_hashgrid_fitters(
      const std::vector<HashgridFitterCuda*>& fitters, int64_t count, int64_t report_every,
      const std::function<bool(int64_t fitter, int64_t step, int64_t steps, double loss)>& progress) const = 0;

  // Stage 1, solvers "direct" and "average", and fields at the nodes of a grid, see
  // field/direct_solver/direct_backend.h.
  virtual Status create_direct_solver(const DirectSetup& setup, std::unique_ptr<DirectSolverCuda>* out) const = 0;
  virtual Status query_field(int device, GridShape grid, int64_t channels, const float* nodes, int64_t count,
                             const float* coords, float* out, void* stream) const = 0;
  virtual Status field_patch_means(int device, GridShape grid, int64_t channels, const float* nodes, int64_t height,
                                   int64_t width, const float* coords, float* out, void* stream) const = 0;
  virtual size_t gauge_workspace_bytes(int64_t patches, int64_t channels) const = 0;
  virtual Status apply_gauge(int device, int64_t patches, int64_t channels, float* artifacts, int64_t nodes,
                             float* node_values, void* workspace, void* stream) const = 0;
  // raw = features as float32, residual = raw - semantics - artifacts: device memory, [count] each; only enqueues.
  virtual Status residual(int device, const void* features, Dtype type, const float* semantics, const float* artifacts,
                          int64_t count, float* raw, float* residual, void* stream) const = 0;

  // Stage 2, see engine/cuda/engine_backend.h.
  virtual Status create_engine_model(const EngineWeights& weights, EngineCompute compute, int device,
                                     std::unique_ptr<EngineModelCuda>* out) const = 0;

  // An op by name (op_registry.h) on arrays in main memory, `repeat` times, for tests.
  virtual std::vector<std::string> ops() const = 0;
  virtual Status run_op(int device, const std::string& name, std::vector<HostTensor>& tensors, const OpNumbers& numbers,
                        const OpWords& words, int repeat) const = 0;
};

// The library, loaded once; where that fails a status that says why, again at every call. DVT_FAST_CUDA_LIBRARY names
// another file than the one beside this library.
Status load_backend(const Backend** out);

// What the library exports, as "dvt_cuda_backend": null where `abi`, which stands for this header and those it includes
// (cmake/backend_abi.cmake), is not its own.
using BackendEntry = const Backend* (*)(int abi);

}  // namespace dvt::cuda

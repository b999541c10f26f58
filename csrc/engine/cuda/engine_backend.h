// The engine on a device as the bindings and the C library see it: a model whose weights lie on the device and sessions
// that run it, without a type of CUDA's.
//
// A run only enqueues kernels on the caller's stream: it allocates nothing once it has run (with a workspace of the
// caller's never), does not synchronise, and can be captured into a graph. Whether its result is finite is known after
// the stream was synchronised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/status.h"
#include "core/tensor.h"
#include "engine/session.h"
#include "engine/weights.h"

namespace dvt::cuda {

// How products are computed, with sums in float32: on 16-bit numbers, on float32 cut to tf32, or on float32 as three
// products of tf32, which have the error of float32 arithmetic.
enum class EngineCompute : int32_t { float32 = 0, tf32, float16, bfloat16 };
constexpr const char* compute_name(EngineCompute compute) {
  return compute == EngineCompute::float32   ? "float32"
         : compute == EngineCompute::tf32    ? "tf32"
         : compute == EngineCompute::float16 ? "float16"
                                             : "bfloat16";
}
constexpr bool is_narrow(EngineCompute compute) {
  return compute == EngineCompute::float16 || compute == EngineCompute::bfloat16;
}

class EngineSessionCuda {
 public:
  virtual ~EngineSessionCuda() = default;

  virtual const SessionOptions& options()
      const = 0;  // with every 0 replaced by what it stands for; threads mean nothing
  virtual int64_t grid_height() const = 0;
  virtual int64_t grid_width() const = 0;
  virtual int64_t dim() const = 0;
  virtual int device() const = 0;
  static constexpr size_t kWorkspaceAlignment = 256;
  virtual size_t workspace_bytes() const = 0;
  // Kernels that the last run enqueued; 0 before the first.
  virtual int launches() const = 0;

  // Tensors as for Session::run, in memory of the model's device. stream: a cudaStream_t of that device, null is the
  // default one. workspace: `workspace_bytes()` bytes on the device, 256-byte aligned, undefined before and after, and
  // in use until the run is done; null: the session's own, which the first such run allocates. Errors:
  // invalid_argument, busy, out_of_memory, and those of launches. Runs of a session that may overlap in time on the
  // device need workspaces of their own.
  virtual Status run(const TensorView& input, const TensorView& output, const TensorView* raw, void* stream,
                     void* workspace, size_t workspace_bytes) = 0;
  // Whether the result of the last run, which must be done, is finite. Copies 4 bytes from the device.
  virtual Status finite(bool* out) = 0;
  // The same as `run` and `finite` from and to main memory, on a stream of the session's own, synchronised. The first
  // run, and one of a larger image than before, allocate. non_finite where the result holds NaN or infinity.
  virtual Status run_host(const TensorView& input, const TensorView& output, const TensorView* raw) = 0;
};

class EngineModelCuda {
 public:
  virtual ~EngineModelCuda() = default;

  virtual bool has_vit() const = 0;
  virtual bool has_denoiser() const = 0;
  virtual int64_t dim() const = 0;
  virtual EngineCompute compute() const = 0;
  virtual int device() const = 0;
  virtual const std::string& metadata() const = 0;
  virtual int64_t image_height() const = 0;  // of a session by default; 0 without a ViT
  virtual int64_t image_width() const = 0;
  virtual size_t bytes() const = 0;  // on the device

  // The session keeps what it needs of the model.
  virtual Status create_session(const SessionOptions& options, std::unique_ptr<EngineSessionCuda>* out) const = 0;
};

// Packs weights for `compute` and uploads them to `device`.
Status create_engine_model(const EngineWeights& weights, EngineCompute compute, int device,
                           std::unique_ptr<EngineModelCuda>* out);

}  // namespace dvt::cuda

// A session: who may run it, where its tensors must be, and its memory. What a run enqueues is in frame.cu.
#include "engine/cuda/session.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/cuda/host_copy.h"

namespace dvt::cuda {
namespace {

// While it lives, this thread may ask the runtime where memory is though a stream is being captured.
class CaptureAllowsQuestions {
 public:
  CaptureAllowsQuestions() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~CaptureAllowsQuestions() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  CaptureAllowsQuestions(const CaptureAllowsQuestions&) = delete;
  CaptureAllowsQuestions& operator=(const CaptureAllowsQuestions&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class SessionCuda final : public EngineSessionCuda {
 public:
  ~SessionCuda() override {
    if (!stream_) return;
    const DeviceGuard guard(device());
    cudaStreamDestroy(stream_);
  }

  Status create(std::shared_ptr<const DeviceModel> model, const SessionOptions& options) {
    plan_.model = std::move(model);
    plan_.options = options;
    const DeviceGuard guard(device());
    DVT_RETURN_IF_ERROR(guard.status());
    DVT_RETURN_IF_ERROR(plan_.make());
    DVT_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    DVT_RETURN_IF_ERROR(non_finite_.allocate(1, "a session"));
    DVT_RETURN_IF_ERROR(non_finite_.zero(stream_, "creating a session"));
    SessionTables& tables = plan_.tables;
    const int64_t count = static_cast<int64_t>(tables.values.size());
    if (count > 0) {
      DVT_RETURN_IF_ERROR(tables.device.allocate(count, "the tables of a session"));
      DVT_RETURN_IF_ERROR(tables.device.upload(tables.values.data(), count, stream_, "the tables of a session"));
    }
    DVT_CUDA(cudaStreamSynchronize(stream_), "creating a session");
    tables.values = {};
    return Status();
  }

  const SessionOptions& options() const override { return plan_.options; }
  int64_t grid_height() const override { return plan_.grid[0]; }
  int64_t grid_width() const override { return plan_.grid[1]; }
  int64_t dim() const override { return plan_.kind.dim; }
  int device() const override { return plan_.model->device; }
  size_t workspace_bytes() const override { return plan_.workspace_bytes; }
  int launches() const override { return launches_; }

  Status run(const TensorView& input, const TensorView& output, const TensorView* raw, void* stream, void* workspace,
             size_t workspace_bytes) override {
    const Use use(busy_);
    DVT_RETURN_IF_ERROR(use.status());
    const DeviceGuard guard(device());
    DVT_RETURN_IF_ERROR(guard.status());
    enqueued_ = true;
    return enqueue(input, output, raw, static_cast<cudaStream_t>(stream), workspace, workspace_bytes);
  }

  Status finite(bool* out) override {
    const Use use(busy_);
    DVT_RETURN_IF_ERROR(use.status());
    const DeviceGuard guard(device());
    DVT_RETURN_IF_ERROR(guard.status());
    return read_finite(out);
  }

  Status run_host(const TensorView& input, const TensorView& output, const TensorView* raw) override;

 private:
  // A session serves one caller at a time.
  class Use {
   public:
    explicit Use(std::atomic<bool>& busy) : busy_(busy), mine_(!busy.exchange(true, std::memory_order_acquire)) {}
    ~Use() {
      if (mine_) busy_.store(false, std::memory_order_release);
    }
    Status status() const {
      return mine_ ? Status()
                   : Status(StatusCode::busy,
                            "this session runs on another thread: a session serves one caller at a time");
    }

   private:
    std::atomic<bool>& busy_;
    const bool mine_;
  };

  Status enqueue(const TensorView& input, const TensorView& output, const TensorView* raw, cudaStream_t stream,
                 void* workspace, size_t workspace_bytes);
  Status check_place(const char* name, const void* data, int64_t alignment) const;
  Status check_stream(cudaStream_t stream) const;
  Status own_workspace(cudaStream_t stream, void** workspace);
  Status read_finite(bool* out) {
    uint32_t value = 0;
    DVT_RETURN_IF_ERROR(non_finite_.download(&value, 1, stream_, "reading whether a result is finite"));
    *out = value == 0;
    return Status();
  }

  SessionPlan plan_;
  DeviceBuffer<uint32_t> non_finite_;
  DeviceMemory workspace_;
  DeviceMemory staged_[3];  // of run_host: input, output, raw
  std::vector<char> packed_[3];
  cudaStream_t stream_ = nullptr;
  std::atomic<bool> busy_{false};
  bool enqueued_ = false;  // something on a stream of the caller's that may still be using the workspace
  int launches_ = 0;
};

Status SessionCuda::check_place(const char* name, const void* data, int64_t alignment) const {
  cudaPointerAttributes attributes = {};
  DVT_CUDA(cudaPointerGetAttributes(&attributes, data), "finding where a tensor is");
  const bool is_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  if (!is_device) return invalid_argument(name, " must be in memory of device ", device(), ", got memory of the CPU");
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != device())
    return invalid_argument(name, " must be in memory of device ", device(), ", where the model is, got device ",
                            attributes.device);
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(alignment) != 0)
    return invalid_argument(name, " must be aligned to its ", alignment, " bytes");
  return Status();
}

Status SessionCuda::check_stream(cudaStream_t stream) const {
  if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return Status();  // of any device
  int of = device();
  DVT_CUDA(cudaStreamGetDevice(stream, &of), "finding the device of a stream");
  if (of == device()) return Status();
  return invalid_argument("stream must be of device ", device(), ", where the model is, got one of device ", of);
}

Status SessionCuda::own_workspace(cudaStream_t stream, void** workspace) {
  if (!workspace_.data()) {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    DVT_CUDA(cudaStreamIsCapturing(stream, &capturing), "looking at a stream");
    if (capturing != cudaStreamCaptureStatusNone)
      return invalid_argument(
          "the session's own workspace cannot be allocated in a capture: run once before it, or give a workspace of ",
          plan_.workspace_bytes, " bytes");
    DVT_RETURN_IF_ERROR(workspace_.allocate(std::max<size_t>(plan_.workspace_bytes, 1), "the workspace of a session"));
  }
  *workspace = workspace_.data();
  return Status();
}

Status SessionCuda::enqueue(const TensorView& input, const TensorView& output, const TensorView* raw,
                            cudaStream_t stream, void* workspace, size_t workspace_bytes) {
  DVT_RETURN_IF_ERROR(check_tensors(plan_.kind, plan_.options, input, output, raw));
  const CaptureAllowsQuestions allow;
  DVT_RETURN_IF_ERROR(check_place("input", input.data, size_of(input.dtype)));
  DVT_RETURN_IF_ERROR(check_place("output", output.data, size_of(output.dtype)));
  if (raw) DVT_RETURN_IF_ERROR(check_place("raw", raw->data, size_of(raw->dtype)));
  DVT_RETURN_IF_ERROR(check_stream(stream));
  if (!workspace) {
    DVT_RETURN_IF_ERROR(own_workspace(stream, &workspace));
  } else {
    if (workspace_bytes < plan_.workspace_bytes)
      return invalid_argument("the workspace has ", workspace_bytes, " bytes, and ", plan_.workspace_bytes,
                              " are needed");
    DVT_RETURN_IF_ERROR(check_place("the workspace", workspace, static_cast<int64_t>(kWorkspaceAlignment)));
  }
  FrameCall frame;
  frame.plan = &plan_;
  frame.input = &input;
  frame.output = &output;
  frame.raw = raw;
  frame.workspace = static_cast<char*>(workspace);
  frame.non_finite = non_finite_.data();
  frame.stream = stream;
  return enqueue_frame(frame, &launches_);
}

Status SessionCuda::run_host(const TensorView& input, const TensorView& output, const TensorView* raw) {
  const Use use(busy_);
  DVT_RETURN_IF_ERROR(use.status());
  const DeviceGuard guard(device());
  DVT_RETURN_IF_ERROR(guard.status());
  DVT_RETURN_IF_ERROR(check_tensors(plan_.kind, plan_.options, input, output, raw));
  if (enqueued_) {
    DVT_CUDA(cudaDeviceSynchronize(), "waiting for an earlier run of the session");
    enqueued_ = false;
  }
  const TensorView* host[] = {&input, &output, raw};
  TensorView staged[3];
  for (int i = 0; i < 3; ++i) {
    if (!host[i]) continue;
    staged[i] = contiguous_like(*host[i]);
    const size_t bytes = static_cast<size_t>(bytes_of(*host[i]));
    if (staged_[i].bytes() < bytes) {
      staged_[i].release();
      DVT_RETURN_IF_ERROR(staged_[i].allocate(bytes, "a copy of a tensor"));
    }
    staged[i].data = staged_[i].data();
  }
  DVT_CUDA(cudaMemcpyAsync(staged[0].data, pack(input, &packed_[0]), static_cast<size_t>(bytes_of(input)),
                           cudaMemcpyHostToDevice, stream_),
           "copying the input");
  DVT_RETURN_IF_ERROR(enqueue(staged[0], staged[1], raw ? &staged[2] : nullptr, stream_, nullptr, 0));
  for (int i = 1; i < 3; ++i) {
    if (!host[i]) continue;
    const size_t bytes = static_cast<size_t>(bytes_of(*host[i]));
    const bool direct = is_contiguous(*host[i]);
    if (!direct) packed_[i].resize(bytes);
    DVT_CUDA(cudaMemcpyAsync(direct ? host[i]->data : packed_[i].data(), staged[i].data, bytes, cudaMemcpyDeviceToHost,
                             stream_),
             "copying the result");
    DVT_CUDA(cudaStreamSynchronize(stream_), "running a session");
    if (!direct) unpack(packed_[i].data(), *host[i]);
  }
  bool finite = true;
  DVT_RETURN_IF_ERROR(read_finite(&finite));
  return finite ? Status() : non_finite("the features hold NaN or infinity");
}

}  // namespace

Status create_session(std::shared_ptr<const DeviceModel> model, const SessionOptions& options,
                      std::unique_ptr<EngineSessionCuda>* out) {
  auto session = std::make_unique<SessionCuda>();
  DVT_RETURN_IF_ERROR(session->create(std::move(model), options));
  *out = std::move(session);
  return Status();
}

}  // namespace dvt::cuda

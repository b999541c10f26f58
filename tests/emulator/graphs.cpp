// Capture and replay: while a stream is captured, and those that wait for its events, operations are collected; a
// launch of the graph runs them in the order in which they came, which is one of the orders that the graph allows.
#include <algorithm>

#include "streams.h"

namespace emulator {
namespace {

thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

}  // namespace

std::vector<std::shared_ptr<Capture>>& active_captures() {
  static auto& all = *new std::vector<std::shared_ptr<Capture>>;
  return all;
}

cudaError_t invalidate(Capture& capture, cudaError_t error) {
  capture.invalidated = true;
  return error;
}

cudaError_t refuse_in_capture() {
  if (mode_of_thread == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (const auto& capture : active_captures()) {
    const bool ours = capture->thread == std::this_thread::get_id() && capture->mode != cudaStreamCaptureModeRelaxed;
    const bool global = capture->mode == cudaStreamCaptureModeGlobal && mode_of_thread == cudaStreamCaptureModeGlobal;
    if (ours || global) return invalidate(*capture, cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

}  // namespace emulator

using namespace emulator;

#define EMULATOR_CALL                    \
  std::lock_guard lock(runtime_mutex()); \
  if (const cudaError_t error = usable()) return noted(error)

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  EMULATOR_CALL;
  CUstream_st* stream = resolve(handle);
  if (!stream) return noted(cudaErrorInvalidResourceHandle);
  if (stream != handle) return noted(cudaErrorStreamCaptureUnsupported);  // the default stream
  if (stream->capture) return noted(cudaErrorIllegalState);
  auto capture = std::make_shared<Capture>();
  capture->origin = stream;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->streams = {stream};
  stream->capture = capture;
  stream->captured = stream->joined = 0;
  active_captures().push_back(std::move(capture));
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  EMULATOR_CALL;
  *graph = nullptr;
  CUstream_st* stream = resolve(handle);
  if (!stream) return noted(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (!capture) return noted(cudaErrorIllegalState);
  if (capture->origin != stream) return noted(cudaErrorStreamCaptureUnmatched);
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
    return noted(cudaErrorStreamCaptureWrongThread);
  bool unjoined = false;
  for (CUstream_st* each : capture->streams) {
    unjoined |= each != stream && each->captured > each->joined;
    each->capture.reset();
  }
  auto& active = active_captures();
  active.erase(std::find(active.begin(), active.end(), capture));
  if (capture->invalidated) return noted(cudaErrorStreamCaptureInvalidated);
  if (unjoined) return noted(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st;
  (*graph)->operations = std::make_shared<std::vector<Operation>>(std::move(capture->operations));
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  EMULATOR_CALL;
  const CUstream_st* stream = resolve(handle);
  if (!stream) return noted(cudaErrorInvalidResourceHandle);
  *status = !stream->capture               ? cudaStreamCaptureStatusNone
            : stream->capture->invalidated ? cudaStreamCaptureStatusInvalidated
                                           : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, mode_of_thread);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  EMULATOR_CALL;
  if (!exec || !graph) return noted(cudaErrorInvalidValue);
  *exec = new CUgraphExec_st;
  (*exec)->operations = graph->operations;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  EMULATOR_CALL;
  if (!graph || nodes) return noted(cudaErrorInvalidValue);
  *count = graph->operations->size();
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
  EMULATOR_CALL;
  return noted(exec ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  EMULATOR_CALL;
  if (!exec) return noted(cudaErrorInvalidValue);
  return noted(enqueue(stream, [operations = exec->operations] {
    for (const Operation& operation : *operations)
      if (const cudaError_t error = operation()) return error;
    return cudaSuccess;
  }));
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  if (!exec) return noted(cudaErrorInvalidValue);
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (!graph) return noted(cudaErrorInvalidValue);
  delete graph;
  return cudaSuccess;
}

// The host side's state: streams, events, captures, errors, and the operations that wait in streams.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "emulator/runtime_api.h"

namespace emulator {

using Operation = std::function<cudaError_t()>;

// What a graph is made of; shared by the streams that are captured together.
struct Capture {
  CUstream_st* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  std::vector<Operation> operations;
  std::set<CUstream_st*> streams;
  bool invalidated = false;
};

struct Pending {
  Operation run;
  std::vector<std::pair<CUstream_st*, uint64_t>> after;  // operations of other streams that come first
};

// All that follows is called with this held.
std::recursive_mutex& runtime_mutex();

// Whether there is a device at all, and no sticky error: what nearly every call returns otherwise.
cudaError_t usable();
// Remembers it for cudaGetLastError, and returns it.
cudaError_t noted(cudaError_t error);
void make_sticky(cudaError_t error);

// Captures, queues or runs it. Returns errors of the call, not of the operation.
cudaError_t enqueue(cudaStream_t stream, Operation operation);
// For a call that may not be made while a stream is captured: the error, and the capture is lost.
cudaError_t refuse_in_capture();
cudaError_t invalidate(Capture& capture, cudaError_t error);
std::vector<std::shared_ptr<Capture>>& active_captures();
// The stream of a handle, null where it's none.
CUstream_st* resolve(cudaStream_t stream);
void run_until(CUstream_st& stream, uint64_t position);
void synchronize_all();
int current_device();

struct Counts {
  long long launches = 0, allocations = 0, bytes = 0, copies = 0;
};
Counts& counts();

}  // namespace emulator

struct CUstream_st {
  int device = 0;
  unsigned flags = 0;
  int priority = 0;
  std::deque<emulator::Pending> queue;
  uint64_t enqueued = 0, done = 0;
  std::shared_ptr<emulator::Capture> capture;
  // Captured operations, and how many of them another captured stream has waited for.
  uint64_t captured = 0, joined = 0;
};

struct CUevent_st {
  unsigned flags = 0;
  CUstream_st* stream = nullptr;  // of the last record; null: never recorded
  uint64_t position = 0;          // how many operations of the stream are before it, or captured ones
  double seconds = -1;
  std::shared_ptr<emulator::Capture> capture;
};

struct CUgraph_st {
  std::shared_ptr<const std::vector<emulator::Operation>> operations;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<emulator::Operation>> operations;
};

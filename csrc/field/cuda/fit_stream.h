// Streams that branch and join: how a step says what may run beside what. Captured into a graph the branches become its
// edges; enqueued directly they are what they look like. Where both want the device, what the step waits for goes
// first: the main stream and critical branches have the higher priority, which graphs keep.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "core/status.h"
#include "cuda/runtime.h"

namespace dvt::cuda {

class FitStream {
 public:
  FitStream() = default;
  FitStream(const FitStream&) = delete;
  FitStream& operator=(const FitStream&) = delete;
  ~FitStream() {
    for (cudaEvent_t event : events_)
      if (event) cudaEventDestroy(event);
    for (cudaStream_t side : sides_)
      if (side) cudaStreamDestroy(side);
    if (main_) cudaStreamDestroy(main_);
  }

  Status create() {
    int least = 0, greatest = 0;
    DVT_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest), "reading the priorities of streams");
    DVT_CUDA(cudaStreamCreateWithPriority(&main_, cudaStreamNonBlocking, greatest), "making a stream");
    for (int i = 0; i < kSides; ++i)
      DVT_CUDA(cudaStreamCreateWithPriority(&sides_[i], cudaStreamNonBlocking, i < kCritical ? greatest : least),
               "making a stream");
    for (cudaEvent_t& event : events_)
      DVT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    return Status();
  }

  cudaStream_t main() const { return main_; }

  // A stream that goes on from where `from` is now.
  Status branch(cudaStream_t from, cudaStream_t* out, bool critical = false) {
    for (int i = critical ? 0 : kCritical; i < (critical ? kCritical : kSides); ++i) {
      if (used_[i]) continue;
      used_[i] = true;
      *out = sides_[i];
      return after(*out, from);
    }
    return Status(StatusCode::internal, "a step has too many branches");
  }
  // What `stream` does next waits for what `other` has been given.
  Status after(cudaStream_t stream, cudaStream_t other) {
    cudaEvent_t event = events_[next_event_++ % kEvents];
    DVT_CUDA(cudaEventRecord(event, other), "joining streams");
    return check(cudaStreamWaitEvent(stream, event, 0), "joining streams");
  }
  // The main stream waits for all branches, which may be taken again.
  Status join() {
    for (int i = 0; i < kSides; ++i) {
      if (!used_[i]) continue;
      used_[i] = false;
      DVT_RETURN_IF_ERROR(after(main_, sides_[i]));
    }
    return Status();
  }
  // After a capture that failed.
  void forget() {
    for (bool& used : used_) used = false;
  }

 private:
  static constexpr int kCritical = 2, kSides = 16, kEvents = 64;
  cudaStream_t main_ = nullptr, sides_[kSides] = {};
  cudaEvent_t events_[kEvents] = {};
  bool used_[kSides] = {};
  unsigned next_event_ = 0;
};

}  // namespace dvt::cuda

// Streams that branch and join: how a step says what may run beside what. Captured into a graph the branches become its
// edges; enqueued directly they are what they look like.
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
    DVT_CUDA(cudaStreamCreateWithFlags(&main_, cudaStreamNonBlocking), "making a stream");
    for (cudaStream_t& side : sides_)
      DVT_CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking), "making a stream");
    for (cudaEvent_t& event : events_)
      DVT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    return Status();
  }

  cudaStream_t main() const { return main_; }

  // A stream that goes on from where `from` is now.
  Status branch(cudaStream_t from, cudaStream_t* out) {
    if (used_ == kSides) return Status(StatusCode::internal, "a step has too many branches");
    *out = sides_[used_++];
    return after(*out, from);
  }
  // What `stream` does next waits for what `other` has been given.
  Status after(cudaStream_t stream, cudaStream_t other) {
    cudaEvent_t event = events_[next_event_++ % kEvents];
    DVT_CUDA(cudaEventRecord(event, other), "joining streams");
    return check(cudaStreamWaitEvent(stream, event, 0), "joining streams");
  }
  // The main stream waits for all branches, which may be taken again.
  Status join() {
    for (; used_ > 0; --used_) DVT_RETURN_IF_ERROR(after(main_, sides_[used_ - 1]));
    return Status();
  }
  void forget() { used_ = 0; }  // after a capture that failed

 private:
  static constexpr int kSides = 8, kEvents = 32;
  cudaStream_t main_ = nullptr, sides_[kSides] = {};
  cudaEvent_t events_[kEvents] = {};
  int used_ = 0;
  unsigned next_event_ = 0;
};

}  // namespace dvt::cuda

// Memory of one solver on a device: one large allocation, pieces of which are handed out and come back all together
// when the solver goes. Allocating on a device takes longer than many kernels, so what is needed is foreseen and asked
// for at once; what was not is allocated by itself.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cuda/runtime.h"

namespace dvt::cuda {

class Arena {
 public:
  // Room for `bytes` more in one allocation.
  Status reserve(size_t bytes, const char* what) {
    if (bytes <= left_) return Status();
    DeviceMemory memory;
    DVT_RETURN_IF_ERROR(memory.allocate(bytes, what));
    next_ = static_cast<char*>(memory.data());
    left_ = bytes;
    blocks_.push_back(std::move(memory));
    return Status();
  }
  Status take(size_t bytes, const char* what, void** out) {
    bytes = aligned(bytes);
    DVT_RETURN_IF_ERROR(reserve(bytes, what));
    *out = next_;
    next_ += bytes;
    left_ -= bytes;
    return Status();
  }
  static constexpr size_t aligned(size_t bytes) {
    return (bytes + Layout::kAlignment - 1) / Layout::kAlignment * Layout::kAlignment;
  }

 private:
  std::vector<DeviceMemory> blocks_;
  char* next_ = nullptr;
  size_t left_ = 0;
};

// An array in an arena. It only grows; the memory that it had stays the arena's.
template <class T>
class Piece {
 public:
  static constexpr size_t bytes(int64_t count) { return Arena::aligned(static_cast<size_t>(count) * sizeof(T)); }

  Status at_least(Arena& arena, int64_t count, const char* what = "the direct solver") {
    if (count <= count_) return Status();
    void* at;
    DVT_RETURN_IF_ERROR(arena.take(static_cast<size_t>(count) * sizeof(T), what, &at));
    data_ = static_cast<T*>(at);
    count_ = count;
    return Status();
  }
  // The same, and the first `used` stay what they are.
  Status grow(Arena& arena, int64_t count, int64_t used, cudaStream_t stream, const char* what) {
    const T* before = data_;
    if (count <= count_) return Status();
    DVT_RETURN_IF_ERROR(at_least(arena, std::max(count, 2 * count_), what));
    if (used == 0) return Status();
    return check(
        cudaMemcpyAsync(data_, before, static_cast<size_t>(used) * sizeof(T), cudaMemcpyDeviceToDevice, stream), what);
  }
  Status download(T* to, int64_t count, cudaStream_t stream, const char* what) const {
    DVT_CUDA(cudaMemcpyAsync(to, data_, static_cast<size_t>(count) * sizeof(T), cudaMemcpyDeviceToHost, stream), what);
    return check(cudaStreamSynchronize(stream), what);
  }
  Status zero(int64_t count, cudaStream_t stream, const char* what) {
    return check(cudaMemsetAsync(data_, 0, static_cast<size_t>(count) * sizeof(T), stream), what);
  }
  T* data() const { return data_; }
  int64_t count() const { return count_; }

 private:
  T* data_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace dvt::cuda

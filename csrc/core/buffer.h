// Memory aligned to a cache line, for packed operands and workspaces; grows, never shrinks, contents undefined.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dvt {

constexpr size_t kAlignment = 64;
// From here on memory is laid out for huge pages, where the system gives them on request: tens of megabytes of weights
// that are read once a frame need more small pages than a processor remembers the addresses of.
constexpr size_t kHugePage = size_t{1} << 21, kHugeFrom = 2 * kHugePage;

// A bad_alloc that says how much was asked for.
class OutOfMemory : public std::bad_alloc {
 public:
  OutOfMemory(double count, double size) noexcept {
    std::snprintf(text_, sizeof text_, "not enough memory: %.3g MB more were needed", count * size / 1e6);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[80];
};

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) { at_least(count); }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // Throws OutOfMemory, also for a count that is negative or whose bytes cannot be counted: a product that wrapped.
  T* at_least(int64_t count) {
    if (count < 0) throw OutOfMemory(9.2e18, sizeof(T));
    if (count > capacity_) {
      std::free(data_);
      data_ = nullptr;
      capacity_ = 0;
      if (count > kMaxCount) throw OutOfMemory(static_cast<double>(count), sizeof(T));
      size_t bytes = static_cast<size_t>(count) * sizeof(T);
      const size_t alignment = bytes >= kHugeFrom ? kHugePage : kAlignment;
      bytes = (bytes + alignment - 1) / alignment * alignment;
      data_ = static_cast<T*>(std::aligned_alloc(alignment, bytes));
      if (!data_) throw OutOfMemory(static_cast<double>(count), sizeof(T));
#if defined(__linux__)
      if (alignment == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);  // a hint: without it all works, slower
#endif
      capacity_ = count;
    }
    return data_;
  }
  T* zeroed(int64_t count) {
    T* p = at_least(count);
    if (count > 0) std::memset(static_cast<void*>(p), 0, static_cast<size_t>(count) * sizeof(T));
    return p;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr int64_t kMaxCount =
      (std::numeric_limits<int64_t>::max() - static_cast<int64_t>(kHugePage)) / static_cast<int64_t>(sizeof(T));

  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace dvt

// Many pieces of memory in few allocations that live as long as it does.
#pragma once

#include <algorithm>
#include <vector>

#include "core/buffer.h"

namespace dvt {

class Slabs {
 public:
  // Aligned like a Buffer, not initialised. Throws OutOfMemory.
  float* take(int64_t floats) {
    floats = (floats + kPiece - 1) / kPiece * kPiece;
    if (slabs_.empty() || floats > left_) {
      left_ = std::max(floats, kSlab);
      slabs_.emplace_back(left_);
      next_ = slabs_.back().data();
    }
    float* piece = next_;
    next_ += floats;
    left_ -= floats;
    return piece;
  }

 private:
  static constexpr int64_t kPiece = kAlignment / sizeof(float);
  static constexpr int64_t kSlab = int64_t{16} << 18;  // 16 MB

  std::vector<Buffer<float>> slabs_;
  float* next_ = nullptr;
  int64_t left_ = 0;
};

}  // namespace dvt

// A tensor as DLPack describes it, without owning anything: what the engine reads its input from and writes to.
#pragma once

#include <cstdint>

namespace dvt {

// Values are stored as IEEE little-endian; a float16 and a bfloat16 as uint16_t.
enum class Dtype { float32 = 0, float16, bfloat16, uint8 };

constexpr int64_t size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : dtype == Dtype::uint8 ? 1 : 2; }
constexpr const char* dtype_name(Dtype dtype) {
  return dtype == Dtype::float32    ? "float32"
         : dtype == Dtype::float16  ? "float16"
         : dtype == Dtype::bfloat16 ? "bfloat16"
                                    : "uint8";
}

constexpr int kMaxRank = 4;

struct TensorView {
  void* data = nullptr;  // the first element, byte offset included; never written to where it is an input
  Dtype dtype = Dtype::float32;
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};  // in elements, any sign; always filled in
};

}  // namespace dvt

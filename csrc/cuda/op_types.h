// Types of the arrays that ops are called with by name; see op_registry.h.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace dvt::cuda {

enum class OpType { float32 = 0, float16, bfloat16, uint8, int32, uint32, int64, float64 };

constexpr int64_t op_type_size(OpType type) {
  switch (type) {
    case OpType::float16:
    case OpType::bfloat16: return 2;
    case OpType::uint8: return 1;
    case OpType::int64:
    case OpType::float64: return 8;
    default: return 4;
  }
}
constexpr const char* op_type_name(OpType type) {
  switch (type) {
    case OpType::float32: return "float32";
    case OpType::float16: return "float16";
    case OpType::bfloat16: return "bfloat16";
    case OpType::uint8: return "uint8";
    case OpType::int32: return "int32";
    case OpType::uint32: return "uint32";
    case OpType::int64: return "int64";
    case OpType::float64: return "float64";
  }
  return "unknown";
}

using OpNumbers = std::map<std::string, double>;
using OpWords = std::map<std::string, std::string>;

}  // namespace dvt::cuda

// Ops by name, for tests and benchmarks: one door through which each op's launcher can be called on arrays, without a
// binding of its own. An op's .cu file registers a function beside its launchers:
//
//   Status linear_op(OpCall& call) {
//     const OpTensor* x; OpTensor* y;
//     DVT_RETURN_IF_ERROR(call.input("x", OpType::float32, &x)); ...
//     return linear_forward(..., call.stream);
//   }
//   DVT_CUDA_OP("linear", linear_op)
//
// Tensors are on the device when the function is called; outputs are filled with NaN bytes before it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/op_types.h"

namespace dvt::cuda {

struct OpTensor {
  OpType type = OpType::float32;
  std::vector<int64_t> shape;  // contiguous
  void* data = nullptr;        // device memory, 256-byte aligned

  int64_t count() const {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    return n;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

struct OpCall {
  std::map<std::string, OpTensor> tensors;  // inputs, outputs, and those that are both
  OpNumbers numbers;                        // parameters that are numbers
  OpWords words;                            // and those that are names
  void* stream = nullptr;                   // a cudaStream_t
  int device = 0;

  // The tensor or number of that name; an error that says which one is missing or of another type.
  Status tensor(const std::string& name, OpType type, const OpTensor** out) const;
  bool has(const std::string& name) const { return tensors.count(name) > 0; }
  double number(const std::string& name, double otherwise = 0) const;
  std::string word(const std::string& name, const std::string& otherwise = "") const;
};

using OpFunction = Status (*)(OpCall& call);

class OpRegistration {
 public:
  OpRegistration(const char* name, OpFunction function);
};
std::vector<std::string> registered_ops();
OpFunction find_op(const std::string& name);

}  // namespace dvt::cuda

#define DVT_CUDA_OP(name, function) static const ::dvt::cuda::OpRegistration dvt_op_##function(name, function);

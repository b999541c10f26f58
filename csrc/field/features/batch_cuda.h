// The batch of a step on the device: which patches it has, and where their coordinates and features are.
//
// Random patches are the CPU's, number i of the step's stream (core/random.h): any thread has its own at once, so that
// the next step's batch is known before this one has ended, and no kernel has to draw it first.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "core/status.h"
#include "core/tensor.h"
#include "field/adam/adam_cuda.h"

namespace dvt::cuda {

struct Batch {
  int64_t n = 0;                        // rows of it
  uint64_t seed = 0, first_stream = 0;  // step s draws from stream first_stream + s
  // [*, n], when not null: the patches of step first_step and of those after it, instead of random ones.
  const int64_t* samples = nullptr;
  int32_t first_step = 0;
  const FitClock* clock = nullptr;
};

// The feature bank, [rows, C]: float32, float16 or bfloat16; and its coordinates, [rows, 2].
struct Bank {
  const void* features = nullptr;
  Dtype dtype = Dtype::float32;
  const float* coords = nullptr;
  int64_t rows = 0, channels = 0, patches = 0;  // a view has `patches` rows
};

// What the operands of matrix products are stored as: float32 rounded to tf32, bfloat16, or float32 that is multiplied
// as float32 (three products of tf32). Rows of an operand are `ld` elements apart.
enum class Operand { tf32, bf16, float32 };
constexpr int64_t operand_size(Operand operand) { return operand == Operand::bf16 ? 2 : 4; }
constexpr const char* operand_name(Operand operand) {
  return operand == Operand::tf32 ? "tf32" : operand == Operand::bf16 ? "bfloat16" : "float32";
}

Status operand_of(const std::string& name, Operand* operand);

// out [N, ld] = features of the batch of the clock's step + offset, as operands; columns C ... ld are zero.
Status gather_batch(const Bank& bank, const Batch& batch, int offset, Operand operand, void* out, int64_t ld,
                    cudaStream_t stream);

// The batch's patches [N], as int64: for tests.
Status batch_samples(const Bank& bank, const Batch& batch, int offset, int64_t* out, cudaStream_t stream);

// bad becomes the flat position of the first NaN or infinity among the features, or of the first coordinate outside
// [0, 1]; 2^63 - 1 where there is none.
Status check_features(const Bank& bank, int64_t* bad, cudaStream_t stream);
Status check_coords(const float* coords, int64_t count, int64_t* bad, cudaStream_t stream);

}  // namespace dvt::cuda

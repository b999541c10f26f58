// The fragments of a warp become matrices of float32, which are multiplied with vectors, and go back. Where each lane's
// registers lie in the matrices is told in csrc/cuda/ptx.cuh.
#include "emulator/tensor_core.h"

#include <cstring>

#include "core/half.h"

namespace emulator {
namespace {

typedef float float8 __attribute__((vector_size(32), aligned(4), may_alias));

float as_float(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}
void unpack_bf16(uint32_t pair, float* out) {
  out[0] = as_float(pair << 16);
  out[1] = as_float(pair & 0xffff0000u);
}
void unpack_f16(uint32_t pair, float* out) {
#if defined(__F16C__)
  _Float16 halves[2];
  std::memcpy(halves, &pair, sizeof pair);
  out[0] = halves[0], out[1] = halves[1];
#else
  out[0] = dvt::half_to_float(static_cast<uint16_t>(pair & 0xffffu));
  out[1] = dvt::half_to_float(static_cast<uint16_t>(pair >> 16));
#endif
}

void check_all(uint32_t lanes, const char* name) {
  if (lanes != ~0u) fail(cudaErrorIllegalInstruction, name + std::string(" by a warp that lacks lanes"));
}

float8 row_of(void* const* lanes, int half) {
  const float* c[4];
  for (int quad = 0; quad < 4; ++quad) c[quad] = static_cast<MatrixProduct*>(lanes[quad])->c + half;
  return float8{c[0][0], c[0][1], c[1][0], c[1][1], c[2][0], c[2][1], c[3][0], c[3][1]};
}
void give_back(void* const* lanes, int half, float8 row) {
  for (int quad = 0; quad < 4; ++quad) {
    float* c = static_cast<MatrixProduct*>(lanes[quad])->c + half;
    c[0] = row[2 * quad], c[1] = row[2 * quad + 1];
  }
}

// c [16 x 8] += a [16 x depth] b [depth x 8], four rows at a time.
template <int depth>
void multiply(void* const* arguments, const float (&a)[16][depth], const float (&b)[depth][8]) {
  for (int group = 0; group < 8; group += 2) {
    void* const* first = arguments + group * 4;
    float8 c[4] = {row_of(first, 0), row_of(first + 4, 0), row_of(first, 2), row_of(first + 4, 2)};
    for (int k = 0; k < depth; ++k) {
      float8 right;
      std::memcpy(&right, b[k], sizeof right);
      c[0] += a[group][k] * right;
      c[1] += a[group + 1][k] * right;
      c[2] += a[group + 8][k] * right;
      c[3] += a[group + 9][k] * right;
    }
    give_back(first, 0, c[0]);
    give_back(first + 4, 0, c[1]);
    give_back(first, 2, c[2]);
    give_back(first + 4, 2, c[3]);
  }
}

template <void (*unpack)(uint32_t, float*)>
void multiply_pairs(void* const* arguments) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MatrixProduct*>(arguments[lane]);
    const int group = lane / 4, quad = lane % 4;
    unpack(own.a[0], &a[group][2 * quad]);
    unpack(own.a[1], &a[group + 8][2 * quad]);
    unpack(own.a[2], &a[group][2 * quad + 8]);
    unpack(own.a[3], &a[group + 8][2 * quad + 8]);
    float pair[2];
    unpack(own.b[0], pair);
    b[2 * quad][group] = pair[0], b[2 * quad + 1][group] = pair[1];
    unpack(own.b[1], pair);
    b[2 * quad + 8][group] = pair[0], b[2 * quad + 9][group] = pair[1];
  }
  multiply<16>(arguments, a, b);
}

}  // namespace

void compute_mma_bf16(void* const* arguments, uint32_t lanes) {
  check_all(lanes, "mma.m16n8k16.bf16");
  multiply_pairs<unpack_bf16>(arguments);
}

void compute_mma_f16(void* const* arguments, uint32_t lanes) {
  check_all(lanes, "mma.m16n8k16.f16");
  multiply_pairs<unpack_f16>(arguments);
}

// The lower 13 bits are not looked at.
void compute_mma_tf32(void* const* arguments, uint32_t lanes) {
  check_all(lanes, "mma.m16n8k8.tf32");
  constexpr uint32_t kept = 0xffffe000u;
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MatrixProduct*>(arguments[lane]);
    const int group = lane / 4, quad = lane % 4;
    a[group][quad] = as_float(own.a[0] & kept);
    a[group + 8][quad] = as_float(own.a[1] & kept);
    a[group][quad + 4] = as_float(own.a[2] & kept);
    a[group + 8][quad + 4] = as_float(own.a[3] & kept);
    b[quad][group] = as_float(own.b[0] & kept);
    b[quad + 4][group] = as_float(own.b[1] & kept);
  }
  multiply<8>(arguments, a, b);
}

void load_matrices(int count, bool transposed, void* const* arguments, uint32_t lanes) {
  check_all(lanes, "ldmatrix");
  uint16_t matrix[8][8];
  for (int m = 0; m < count; ++m) {
    for (int row = 0; row < 8; ++row) {
      const void* from = static_cast<MatrixLoad*>(arguments[m * 8 + row])->row;
      on_shared(from, 16, 16, "ldmatrix");
      std::memcpy(matrix[row], from, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, quad = lane % 4;
      const uint16_t low = transposed ? matrix[2 * quad][group] : matrix[group][2 * quad];
      const uint16_t high = transposed ? matrix[2 * quad + 1][group] : matrix[group][2 * quad + 1];
      static_cast<MatrixLoad*>(arguments[lane])->out[m] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

}  // namespace emulator

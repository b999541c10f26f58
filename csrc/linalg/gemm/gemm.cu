// The product of gemm_cuda.h: a tile and a number of splits for each shape, and the epilogue of stage 1's products.
#include "linalg/gemm/gemm_launch.h"

#include "cuda/op_registry.h"
#include "cuda/vectors.cuh"
#include "linalg/gemm/gemm_cuda.h"

namespace dvt::cuda {
namespace {

constexpr bool fits_int(int64_t x) { return x >= 0 && x <= 0x7fffffff; }

// c = mask(relu(alpha * sum + beta * c + bias)), float32 or 16-bit.
template <class T>
struct StoreEpilogue : GemmEpilogue {
  void* c = nullptr;
  int64_t stride = 0, batch_stride = 0;
  float alpha = 1.0f, beta = 0.0f;
  const float* bias = nullptr;
  bool relu = false, narrow = false, aligned = false;  // aligned: 8 numbers of a row can be moved as vectors
  const float* relu_mask = nullptr;
  int64_t mask_stride = 0;

  using Part = StoreEpilogue;  // the same kernel
  static StoreEpilogue make(float* parts, int stride, int64_t part) {
    StoreEpilogue store;
    store.c = parts, store.stride = stride, store.batch_stride = part, store.aligned = true;
    return store;
  }

  template <class U>
  DVT_DEVICE void finish(const GemmPlace& at, float (&v)[8]) {
    U* to = static_cast<U*>(c) + at.batch * batch_stride + at.row * stride + at.column;
    float old[8] = {};
    if (beta != 0.0f) load8(to, at.count, aligned, old);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      v[j] = alpha * v[j];
      if (beta != 0.0f) v[j] += beta * old[j];
      if (j >= at.count) continue;
      if (bias) v[j] += bias[at.column + j];
      if (relu) v[j] = v[j] < 0.0f ? 0.0f : v[j];
      if (relu_mask && !(relu_mask[at.row * mask_stride + at.column + j] > 0.0f)) v[j] = 0.0f;
    }
    store8(to, at.count, aligned, v);
  }
  DVT_DEVICE void apply(const GemmPlace& at, float (&v)[8]) {
    if constexpr (sizeof(T) == 2) {
      if (narrow) {
        finish<T>(at, v);
        return;
      }
    }
    finish<float>(at, v);
  }
};

Status check_call(const GemmCall& call) {
  for (int64_t size : {call.m, call.n, call.k, call.lda, call.ldb, call.ldc, call.batch})
    if (!fits_int(size)) return invalid_argument("gemm: expected sizes of 0 to 2^31 - 1, got ", size);
  if (call.transpose_a && call.transpose_b)
    return invalid_argument("gemm: expected at most one of A and B transposed with C as it is, got both");
  if (call.narrow_c && call.type != GemmType::float16 && call.type != GemmType::bfloat16)
    return invalid_argument("gemm: narrow_c was asked for, expected A and B of 16 bits, got float32");
  if (call.lda < (call.transpose_a ? call.m : call.k) || call.ldb < (call.transpose_b ? call.k : call.n))
    return invalid_argument("gemm: lda and ldb, expected at least a row, got ", call.lda, " and ", call.ldb);
  if (call.ldc < call.n) return invalid_argument("gemm: ldc, expected at least ", call.n, ", got ", call.ldc);
  return Status();
}

// Runs the call on one tile, or (floats given) says what workspace it would use.
template <class Tile, class T>
Status run_tile(const GemmCall& call, const DeviceTraits& traits, int64_t* floats) {
  GemmOperands p;
  p.a = call.a;
  p.b = call.b;
  p.lda = static_cast<int>(call.lda);
  p.ldb = static_cast<int>(call.ldb);
  p.m = static_cast<int>(call.m);
  p.n = static_cast<int>(call.n);
  p.k = static_cast<int>(call.k);
  p.batch_a = call.batch_a;
  p.batch_b = call.batch_b;
  p.splits = gemm_splits<Tile>(traits, call.m, call.n, call.k, call.batch);
  const int64_t needed = gemm_part_floats(call.m, call.n, p.splits, call.batch);
  if (floats) {
    *floats = needed;
    return Status();
  }
  if (call.workspace_floats < needed || !call.workspace) p.splits = 1;

  StoreEpilogue<T> epilogue;
  epilogue.c = call.c;
  epilogue.stride = call.ldc;
  epilogue.batch_stride = call.batch_c;
  epilogue.alpha = call.alpha;
  epilogue.beta = call.beta;
  epilogue.bias = call.bias;
  epilogue.relu = call.relu;
  epilogue.relu_mask = call.relu_mask;
  epilogue.mask_stride = call.mask_stride;
  epilogue.narrow = call.narrow_c;
  const int64_t size = call.narrow_c ? 2 : 4;
  epilogue.aligned = (reinterpret_cast<uintptr_t>(call.c) | static_cast<uintptr_t>(call.ldc * size) |
                      static_cast<uintptr_t>(call.batch_c * size)) %
                         16 ==
                     0;
  GemmLaunch how;
  how.batch = call.batch;
  how.parts = call.workspace;
  how.stream = call.stream;
  how.overlap = call.overlap;
  return gemm_launch<Tile>("gemm", p, epilogue, how);
}

// The fewest tiles that fill the device: large ones move fewest bytes, small ones leave fewer SMs idle.
template <class T, Major kMajorA, Major kMajorB, Precision kPrecision>
Status run_layout(const GemmCall& call, int64_t* floats) {
  const DeviceTraits* traits = nullptr;
  DVT_RETURN_IF_ERROR(current_traits(&traits));
  constexpr bool kCompensated = kPrecision == Precision::compensated, kNarrow = sizeof(T) == 2;
  using Large = GemmTile<T, T, kMajorA, kMajorB, 128, kCompensated ? 64 : 128, kCompensated ? 4 : 2,
                         kNarrow        ? 2
                         : kCompensated ? 2
                                        : 4,
                         3, kNarrow ? 2 : 1, kPrecision>;
  using Small = GemmTile<T, T, kMajorA, kMajorB, 64, 64, 2, 2, 3, kNarrow ? 3 : 2, kPrecision>;
  bool large = call.tiles != GemmTiles::small;
  if (call.tiles == GemmTiles::automatic)
    large = gemm_choose<Large, Small>(*traits, call.m, call.n, call.k, call.batch) == 0;
  return large ? run_tile<Large, T>(call, *traits, floats) : run_tile<Small, T>(call, *traits, floats);
}

template <class T, Precision kPrecision>
Status run_type(const GemmCall& call, int64_t* floats) {
  if (call.transpose_a) return run_layout<T, Major::other, Major::other, kPrecision>(call, floats);
  if (call.transpose_b) return run_layout<T, Major::k, Major::k, kPrecision>(call, floats);
  return run_layout<T, Major::k, Major::other, kPrecision>(call, floats);
}

Status run(const GemmCall& call, int64_t* floats) {
  DVT_RETURN_IF_ERROR(check_call(call));
  switch (call.type) {
    case GemmType::float16: return run_type<f16, Precision::once>(call, floats);
    case GemmType::bfloat16: return run_type<bf16, Precision::once>(call, floats);
    case GemmType::tf32: return run_type<float, Precision::once>(call, floats);
    case GemmType::float32: return run_type<float, Precision::compensated>(call, floats);
  }
  return invalid_argument("gemm: type, expected one of GemmType, got ", static_cast<int>(call.type));
}

}  // namespace

Status gemm_check(const char* name, const GemmOperands& p, Major major_a, Major major_b, int64_t element,
                  int64_t batch) {
  struct Side {
    const char* letter;
    const void* data;
    int64_t stride, batch_stride, row;
  };
  const Side sides[] = {{"A", p.a, p.lda, p.batch_a, major_a == Major::k ? p.k : p.m},
                        {"B", p.b, p.ldb, p.batch_b, major_b == Major::k ? p.k : p.n}};
  for (const Side& side : sides) {
    if (reinterpret_cast<uintptr_t>(side.data) % 16 != 0)
      return invalid_argument(name, ": ", side.letter, ", expected memory aligned to 16 bytes, got an address ",
                              reinterpret_cast<uintptr_t>(side.data) % 16, " bytes after");
    if (side.stride * element % 16 != 0 || side.batch_stride * element % 16 != 0)
      return invalid_argument(name, ": ", side.letter, ", expected strides of whole 16 bytes, got ",
                              side.stride * element, " and ", side.batch_stride * element);
    if (side.stride < side.row)
      return invalid_argument(name, ": ", side.letter, ", expected rows at least ", side.row, " apart, got ",
                              side.stride);
  }
  if (p.splits < 1 || p.splits > 65535 || batch > 65535)
    return invalid_argument(name, ": expected 1 to 65535 splits and products, got ", p.splits, " and ", batch);
  return Status();
}

Status gemm_forward(const GemmCall& call) { return run(call, nullptr); }

Status gemm_workspace(const GemmCall& call, int64_t* floats) { return run(call, floats); }

namespace {

// a, b: [rows, stride] as they are stored, or [batch, rows, stride]; c likewise, in and out. Numbers: m, n, k, alpha,
// beta, relu; words: type, transpose ("nn", "nt", "tn"), tiles. Tensors bias, mask and workspace where they are wanted.
Status gemm_op(OpCall& op) {
  GemmCall call;
  const std::string type = op.word("type", "float32"), layout = op.word("transpose", "nn");
  OpType stored = OpType::float32;
  if (type == "float16") call.type = GemmType::float16, stored = OpType::float16;
  if (type == "bfloat16") call.type = GemmType::bfloat16, stored = OpType::bfloat16;
  if (type == "tf32") call.type = GemmType::tf32;
  const OpTensor *a = nullptr, *b = nullptr, *c = nullptr;
  DVT_RETURN_IF_ERROR(op.tensor("a", stored, &a));
  DVT_RETURN_IF_ERROR(op.tensor("b", stored, &b));
  call.narrow_c = op.number("narrow") != 0;
  DVT_RETURN_IF_ERROR(op.tensor("c", call.narrow_c ? stored : OpType::float32, &c));
  call.transpose_a = layout[0] == 't';
  call.transpose_b = layout[1] == 't';
  call.m = static_cast<int64_t>(op.number("m"));
  call.n = static_cast<int64_t>(op.number("n"));
  call.k = static_cast<int64_t>(op.number("k"));
  call.a = a->data;
  call.b = b->data;
  call.c = c->data;
  call.lda = a->shape.back();
  call.ldb = b->shape.back();
  call.ldc = c->shape.back();
  if (c->shape.size() == 3) {
    call.batch = c->shape[0];
    call.batch_a = a->shape[1] * a->shape[2];
    call.batch_b = b->shape[1] * b->shape[2];
    call.batch_c = c->shape[1] * c->shape[2];
  }
  call.alpha = static_cast<float>(op.number("alpha", 1));
  call.beta = static_cast<float>(op.number("beta", 0));
  call.relu = op.number("relu") != 0;
  const std::string tiles = op.word("tiles");
  if (tiles == "large") call.tiles = GemmTiles::large;
  if (tiles == "small") call.tiles = GemmTiles::small;
  const OpTensor* more = nullptr;
  if (op.has("bias")) {
    DVT_RETURN_IF_ERROR(op.tensor("bias", OpType::float32, &more));
    call.bias = more->as<float>();
  }
  if (op.has("mask")) {
    DVT_RETURN_IF_ERROR(op.tensor("mask", OpType::float32, &more));
    call.relu_mask = more->as<float>();
    call.mask_stride = more->shape.back();
  }
  if (op.has("workspace")) {
    DVT_RETURN_IF_ERROR(op.tensor("workspace", OpType::float32, &more));
    call.workspace = more->as<float>();
    call.workspace_floats = more->count();
    int64_t floats = 0;
    DVT_RETURN_IF_ERROR(gemm_workspace(call, &floats));
    if (floats > call.workspace_floats)
      return invalid_argument("workspace: expected ", floats, " floats, got ", call.workspace_floats);
  }
  call.stream = static_cast<cudaStream_t>(op.stream);
  return gemm_forward(call);
}
DVT_CUDA_OP("gemm", gemm_op)

}  // namespace
}  // namespace dvt::cuda

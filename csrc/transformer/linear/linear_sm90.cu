// The products of a transformer on Hopper: which tile of gemm_sm90.cuh a product takes, and its launch.
//
// Counted for C = 768, bf16, one image, 132 multiprocessors (cycles at about 1.8 GHz; estimates, nothing here is
// measured):
//   tokens  product            blocks                                     cycles of traffic   of products
//    256    qkv 768 -> 2304     72 tiles of 64 x 128                        4,600               3,100
//           proj 768 -> 768     12 tiles of 128 x 128, K in 8               1,300               1,000
//           fc1 768 -> 3072     96 tiles of 64 x 128                        5,900               3,100
//           fc2 3072 -> 768     12 tiles of 128 x 128, K in 8               3,900               3,100
//   1369    qkv                 66 pairs of 128 x 192, rows shared         10,800               9,200
//           proj                66 tiles of 128 x 128                       6,100               6,100
//           fc1                 66 pairs of 128 x 256, rows shared         13,500              12,300
//           fc2                 66 tiles of 128 x 128, K in 2              21,600              12,300
//   5329    qkv                252 pairs of 128 x 192, columns shared      37,800              36,900
//           proj                63 pairs of 128 x 256, columns shared      10,300              12,300
//           fc1                252 pairs of 128 x 256, columns shared      43,300              49,200
//           fc2                 63 pairs of 128 x 256, columns shared      41,300              49,200
// The larger of the two is what a product takes: 8.7, 29 and 82 us for the four of them. Starts and epilogues come on
// top, counted as 3,300 to 5,800 cycles a product and 2,000 more for each further tile of a block.
#include <algorithm>

#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "transformer/linear/linear_sm90.cuh"
#include "transformer/linear/linear_sm90.h"

namespace dvt::cuda {
namespace {

enum class TileKind { narrow, square, wide, widest };  // 64 x 128, 128 x 128, 128 x 192, 128 x 256

struct Plan {
  TileKind tile = TileKind::square;
  int m = 0, n = 0;
  int split = 1;
  Sharing sharing = Sharing::nothing;
  double cycles = 0;
};

int cluster_of(const Plan& plan) { return plan.sharing == Sharing::nothing ? plan.split : 2; }

// How many clusters, or blocks without one, there are work for.
int64_t clusters_of(const Plan& plan, int64_t tiles_m, int64_t tiles_n) {
  return (plan.sharing == Sharing::columns ? ceil_div(tiles_m, 2) : tiles_m) *
         (plan.sharing == Sharing::rows ? ceil_div(tiles_n, 2) : tiles_n);
}

// What a plan would take by the counts above.
double cycles_of(const Plan& plan, int64_t rows, int64_t cols, int64_t steps, int multiprocessors) {
  const int64_t tiles_m = ceil_div(rows, plan.m), tiles_n = ceil_div(cols, plan.n);
  const int cluster = cluster_of(plan);
  const int64_t clusters = clusters_of(plan, tiles_m, tiles_n);
  // A cluster lies within a group of 16 or so multiprocessors.
  const int64_t at_once = cluster <= 2 ? multiprocessors / cluster : int64_t{multiprocessors / 16} * (16 / cluster);
  const int64_t waves = ceil_div(clusters, std::max<int64_t>(at_once, 1));
  const double active = static_cast<double>(std::min(clusters, at_once) * cluster);
  const double bytes = 128.0 * ((plan.sharing == Sharing::rows ? plan.m / 2 : plan.m) +
                                (plan.sharing == Sharing::columns ? plan.n / 2 : plan.n));
  const double traffic = bytes / std::min(64.0, 4800.0 / active);
  const double products = 4.0 * plan.n * plan.m / 128;
  const double step = std::max({traffic, products, 128.0});
  const double epilogue = 500 + 6.0 * plan.n + (plan.split > 1 ? 2500 : 0);
  return 2000 + static_cast<double>(waves) * (static_cast<double>(ceil_div(steps, plan.split)) * step + epilogue);
}

// Which tiles there are: fc1 has no use for 192 columns, and what is rare is not to be compiled often.
constexpr bool has_tile(bool is_narrow_type, LinearKindSm90 kind, TileKind tile) {
  if (!is_narrow_type) return tile == TileKind::narrow || tile == TileKind::square;
  return kind == LinearKindSm90::none || tile == TileKind::narrow || tile == TileKind::square ||
         (kind == LinearKindSm90::gelu && tile == TileKind::widest);
}

Plan choose(bool is_narrow_type, LinearKindSm90 kind, int64_t rows, int64_t cols, int64_t steps, int multiprocessors) {
  Plan best;
  const auto consider = [&](TileKind tile, int m, int n, int split, Sharing sharing) {
    if (!has_tile(is_narrow_type, kind, tile)) return;
    Plan plan;
    plan.tile = tile;
    plan.m = m;
    plan.n = n;
    plan.split = split;
    plan.sharing = sharing;
    plan.cycles = cycles_of(plan, rows, cols, steps, multiprocessors);
    if (best.cycles == 0 || plan.cycles < best.cycles) best = plan;
  };
  for (const Sharing sharing : {Sharing::nothing, Sharing::rows, Sharing::columns}) {
    consider(TileKind::square, 128, 128, 1, sharing);
    consider(TileKind::wide, 128, 192, 1, sharing);
    consider(TileKind::widest, 128, 256, 1, sharing);
  }
  consider(TileKind::narrow, 64, 128, 1, Sharing::nothing);
  for (const int split : {2, 4, 8})
    if (split <= steps) {
      consider(TileKind::narrow, 64, 128, split, Sharing::nothing);
      consider(TileKind::square, 128, 128, split, Sharing::nothing);
    }
  return best;
}

template <class T>
constexpr ptx::TensorType kTensorType = ptx::TensorType::bf16;
template <>
constexpr ptx::TensorType kTensorType<f16> = ptx::TensorType::f16;
template <>
constexpr ptx::TensorType kTensorType<tf32> = ptx::TensorType::f32;

template <class T>
bool encode_matrix(ptx::TensorMap* map, const void* data, int64_t cols, int64_t rows, int64_t stride, int box_cols,
                   int box_rows) {
  const uint64_t extents[2] = {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)};
  const uint64_t strides[1] = {static_cast<uint64_t>(stride) * sizeof(T)};
  const uint32_t box[2] = {static_cast<uint32_t>(box_cols), static_cast<uint32_t>(box_rows)};
  return ptx::encode_tensor_map(map, kTensorType<T>, 2, data, extents, strides, box);
}

bool is_aligned(const void* data, int64_t stride, int64_t size, uintptr_t to = 16) {
  return reinterpret_cast<uintptr_t>(data) % to == 0 && static_cast<uintptr_t>(stride * size) % to == 0;
}

template <class Tile, LinearKindSm90 kKind>
Status launch_linear(const LinearCudaCall& call, const Plan& plan, int multiprocessors, bool* taken) {
  using T = typename Tile::T;
  using Epilogue = LinearEpilogueSm90<kKind, sizeof(T) == 2 ? Accuracy::narrow : Accuracy::full>;
  const int64_t cols = linear_weight_rows(call.out, call.gated);
  ptx::TensorMap x_map, w_map, y_map = {};
  if (!encode_matrix<T>(&x_map, call.x, call.in, call.rows, call.x_stride, Tile::kK, 64) ||
      !encode_matrix<T>(&w_map, call.weight, call.in, cols, call.weight_stride, Tile::kK, Tile::kN / 2))
    return Status();
  GemmSm90Call gemm;
  gemm.rows = static_cast<int>(call.rows);
  gemm.cols = static_cast<int>(cols);
  gemm.steps = static_cast<int>(ceil_div(call.in, Tile::kK));
  gemm.split = plan.split;
  gemm.sharing = plan.sharing;
  gemm.tiles_m = static_cast<int>(ceil_div(call.rows, Tile::kM));
  gemm.tiles_n = static_cast<int>(ceil_div(cols, Tile::kN));
  gemm.packed = sizeof(T) == 2 && kKind != LinearKindSm90::any && plan.split == 1 &&
                call.y_type == storage_of(call.type) && !call.residual && !call.not_finite && cols % 2 == 0 &&
                is_aligned(call.bias, 0, 0, 8) && is_aligned(call.y, call.y_stride, 2) &&
                encode_matrix<T>(&y_map, call.y, cols, call.rows, call.y_stride, 64, 64);
  Epilogue epilogue;
  epilogue.bias = call.bias;
  epilogue.logistic = logistic_of(call.activation);
  epilogue.is_gelu = call.activation == Activation::gelu;
  epilogue.gated = call.gated;
  epilogue.residual = call.residual;
  epilogue.residual_stride = call.residual_stride;
  epilogue.y = call.y;
  epilogue.y_stride = call.y_stride;
  epilogue.y_type = call.y_type;
  epilogue.round_y = call.round_y;
  epilogue.not_finite = call.not_finite;
  epilogue.cols = gemm.cols;
  const int64_t y_size = dvt::size_of(call.y_type);
  epilogue.wide = cols % 4 == 0 && is_aligned(call.bias, 0, 0) && is_aligned(call.residual, call.residual_stride, 4) &&
                  is_aligned(call.y, call.y_stride, y_size, static_cast<uintptr_t>(4 * y_size));

  const int cluster = cluster_of(plan);
  int64_t clusters = clusters_of(plan, gemm.tiles_m, gemm.tiles_n);
  if (plan.split == 1) clusters = std::min<int64_t>(clusters, std::max(multiprocessors / cluster, 1));
  Launch how;
  how.grid = dim3(static_cast<unsigned>(clusters * cluster));
  how.block = dim3(Tile::kThreads);
  how.shared_bytes = Tile::kSharedBytes;
  how.stream = call.stream;
  how.overlap = call.overlap;
  how.cluster = static_cast<unsigned>(cluster);
  *taken = true;
  return launch("linear", gemm_sm90_kernel<Tile, Epilogue>, how, x_map, w_map, y_map, gemm, epilogue);
}

template <class T, LinearKindSm90 kKind>
Status launch_kind(const LinearCudaCall& call, const Plan* forced, int multiprocessors, bool* taken) {
  constexpr bool kNarrow = sizeof(T) == 2;
  const int64_t steps = ceil_div(call.in, 128 / sizeof(T)), cols = linear_weight_rows(call.out, call.gated);
  const Plan plan = forced ? *forced : choose(kNarrow, kKind, call.rows, cols, steps, multiprocessors);
  if constexpr (has_tile(kNarrow, kKind, TileKind::wide))
    if (plan.tile == TileKind::wide)
      return launch_linear<GemmTileSm90<T, 128, 192, 4>, kKind>(call, plan, multiprocessors, taken);
  if constexpr (has_tile(kNarrow, kKind, TileKind::widest))
    if (plan.tile == TileKind::widest)
      return launch_linear<GemmTileSm90<T, 128, 256, 4>, kKind>(call, plan, multiprocessors, taken);
  if (plan.tile == TileKind::narrow)
    return launch_linear<GemmTileSm90<T, 64, 128, 8>, kKind>(call, plan, multiprocessors, taken);
  return launch_linear<GemmTileSm90<T, 128, 128, 6>, kKind>(call, plan, multiprocessors, taken);
}

template <class T>
Status launch_type(const LinearCudaCall& call, const Plan* forced, int multiprocessors, bool* taken) {
  if (call.gated || (call.activate && call.activation != Activation::gelu))
    return launch_kind<T, LinearKindSm90::any>(call, forced, multiprocessors, taken);
  if (call.activate) return launch_kind<T, LinearKindSm90::gelu>(call, forced, multiprocessors, taken);
  return launch_kind<T, LinearKindSm90::none>(call, forced, multiprocessors, taken);
}

Status run(const LinearCudaCall& call, const Plan* forced, bool* taken) {
  *taken = false;
  const DeviceTraits* device = nullptr;
  DVT_RETURN_IF_ERROR(current_traits(&device));
  const int64_t cols = linear_weight_rows(call.out, call.gated), size = size_of(call.type);
  if (!ptx::has_sm90a_code() || device->major != 9 || device->minor != 0 || call.type == LinearType::float32 ||
      std::max({call.rows, cols, call.in}) > INT32_MAX / 2 || (call.round_y && size == 2) ||
      !is_aligned(call.x, call.x_stride, size) || !is_aligned(call.weight, call.weight_stride, size))
    return Status();
  if (call.type == LinearType::bfloat16) return launch_type<bf16>(call, forced, device->multiprocessors, taken);
  if (call.type == LinearType::tf32) return launch_type<tf32>(call, forced, device->multiprocessors, taken);
  return launch_type<f16>(call, forced, device->multiprocessors, taken);
}

}  // namespace

Status linear_forward_sm90(const LinearCudaCall& call, bool* taken) { return run(call, nullptr, taken); }

namespace {

Status parse_tile(const std::string& name, TileKind* tile) {
  const std::pair<const char*, TileKind> names[] = {{"narrow", TileKind::narrow},
                                                    {"square", TileKind::square},
                                                    {"wide", TileKind::wide},
                                                    {"widest", TileKind::widest}};
  for (const auto& [known, value] : names)
    if (name == known) {
      *tile = value;
      return Status();
    }
  return invalid_argument("linear_sm90: tile must be narrow, square, wide or widest, got '", name, "'");
}

// The op `linear` (linear.cu) with a plan of the test's: words tile; numbers split, sharing (1: rows, 2: columns). x
// [rows, in], weight, y [rows, out]; bias, residual, not_finite where wanted; gated; activation, GELU being the only
// one needed here.
Status linear_sm90_op(OpCall& op) {
  LinearCudaCall call;
  const OpTensor *x = nullptr, *weight = nullptr, *more = nullptr;
  const auto found = op.tensors.find("x"), y = op.tensors.find("y");
  if (found == op.tensors.end() || y == op.tensors.end()) return invalid_argument("linear_sm90: x or y is missing");
  DVT_RETURN_IF_ERROR(op.tensor("x", found->second.type, &x));
  DVT_RETURN_IF_ERROR(op.tensor("weight", x->type, &weight));
  call.type = x->type == OpType::float16    ? LinearType::float16
              : x->type == OpType::bfloat16 ? LinearType::bfloat16
                                            : LinearType::tf32;
  if (x->type != OpType::float32 && size_of(call.type) != 2)
    return invalid_argument("linear_sm90: x must be float16, bfloat16 or float32");
  call.gated = op.number("gated") != 0;
  call.rows = x->shape.at(0);
  call.in = call.x_stride = x->shape.at(1);
  call.weight_stride = weight->shape.at(1);
  call.out = call.y_stride = y->second.shape.at(1);
  if (weight->shape[0] != linear_weight_rows(call.out, call.gated) || y->second.shape[0] != call.rows ||
      call.weight_stride < call.in)
    return invalid_argument("linear_sm90: shapes of x, weight and y do not go together");
  call.x = x->data;
  call.weight = weight->data;
  call.y = y->second.data;
  call.y_type = y->second.type == OpType::float16    ? Dtype::float16
                : y->second.type == OpType::bfloat16 ? Dtype::bfloat16
                                                     : Dtype::float32;
  if (op.has("bias")) {
    DVT_RETURN_IF_ERROR(op.tensor("bias", OpType::float32, &more));
    call.bias = more->as<float>();
  }
  if (op.has("residual")) {
    DVT_RETURN_IF_ERROR(op.tensor("residual", OpType::float32, &more));
    call.residual = more->as<float>();
    call.residual_stride = more->shape.back();
  }
  if (op.has("not_finite")) {
    DVT_RETURN_IF_ERROR(op.tensor("not_finite", OpType::uint32, &more));
    call.not_finite = more->as<uint32_t>();
  }
  call.activate = op.word("activation", "none") != "none" || call.gated;
  call.activation = op.word("activation") == "silu" ? Activation::silu : Activation::gelu;
  call.overlap = op.number("overlap") != 0;
  call.stream = static_cast<cudaStream_t>(op.stream);

  Plan plan;
  DVT_RETURN_IF_ERROR(parse_tile(op.word("tile", "square"), &plan.tile));
  plan.split = static_cast<int>(op.number("split", 1));
  plan.sharing = static_cast<Sharing>(op.number("sharing"));
  if ((plan.split != 1 && plan.split != 2 && plan.split != 4 && plan.split != 8) ||
      plan.split > ceil_div(call.in * size_of(call.type), 128))
    return invalid_argument("linear_sm90: split must be 1, 2, 4 or 8 and at most one a stage of in, got ", plan.split);
  if (plan.sharing != Sharing::nothing && (plan.split > 1 || plan.tile == TileKind::narrow))
    return invalid_argument("linear_sm90: sharing is not for split sums, and not for narrow tiles");
  bool taken = false;
  DVT_RETURN_IF_ERROR(run(call, &plan, &taken));
  return taken ? Status() : Status(StatusCode::unsupported, "linear_sm90: this device or call is not for it");
}
DVT_CUDA_OP("linear_sm90", linear_sm90_op)

}  // namespace
}  // namespace dvt::cuda

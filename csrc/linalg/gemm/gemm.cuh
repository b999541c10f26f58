// C = op(A) op(B) on the tensor cores of sm_80 and later, for whoever wants to do something with C before it is stored:
// a device template with an epilogue, and the kernels around it.
//
//   kernel   gemm_kernel<Tile, Epilogue>         one tile of C a block, blocks along x; y splits K, z is the batch
//   device   gemm_sums<Tile>, gemm_finish_tile   the two halves of it, for kernels that do more than one product
//   kernel   gemm_finish_kernel<Epilogue>        adds the parts of a product whose K was split, always in one order
//
// Operands are f16, bf16, float (rounded to tf32 when it is loaded) or tf32 (rounded already); sums are float32. Either
// operand may lie with K contiguous or with its other index contiguous, so y = x W^T (both K), d_x = d_y W (B other)
// and d_W = d_y^T x (both other) are the same code. Rows are aligned to 16 bytes; M, N and K are any.
//
// Shared memory holds tiles of 128 bytes of K, cut into 16-byte pieces whose place within a row is xor-ed with bits of
// the row, so that neither copies nor reads meet in a bank. kStages of them are in flight (cp.async); fragments of the
// next step are loaded while the tensor cores work on this one. Per step of 32 bytes of K and per warp a tile of
// 64 x 64 takes 8 ldmatrix.x4, 32 wavefronts of shared memory, for 32 matrix instructions of 16-bit types.
//
// Which column of C falls to which lane is ours to choose, since a fragment of B may take its columns from any row of
// shared memory: here each lane gets 8 neighbouring columns, so that an epilogue reads and writes 16 or 32 bytes at a
// time, straight from registers. (Where B's columns are contiguous and 16-bit, ldmatrix decides, and the four lanes of
// a row exchange instead: one shuffle a sum.)
//
// Bytes: (M K ceil(N / kN) + N K ceil(M / kM)) elements through L2, M K + N K + M N from and to memory; 2 M N K FLOP.
#pragma once

#include <type_traits>

#include "linalg/gemm/gemm_operand.cuh"

namespace dvt::cuda {

// How float operands are multiplied: `once` after rounding to tf32 (11 bits), or as the sum of three products of their
// upper and lower parts, with sums kept in float32 outside the tensor cores (whose additions truncate): the quality of
// a product in float32.
enum class Precision { once, compensated };

// kM x kN: the block's tile of C; kWarpsM x kWarpsN warps share it, each with a multiple of 32 x 32. kBlocks: how many
// blocks an SM should hold, which limits registers.
template <class A_, class B_, Major kMajorA_, Major kMajorB_, int kM_, int kN_, int kWarpsM_, int kWarpsN_,
          int kStages_ = 3, int kBlocks_ = 1, Precision kPrecision_ = Precision::once>
struct GemmTile {
  using A = A_;
  using B = B_;
  static constexpr Major kMajorA = kMajorA_, kMajorB = kMajorB_;
  static constexpr Precision kPrecision = kPrecision_;
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kStages = kStages_, kBlocks = kBlocks_;
  static constexpr int kSteps = 4;                 // of 32 bytes of K a stage
  static constexpr int kK = 128 / int{sizeof(A)};  // of a stage
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kFragmentsM = kWarpM / 16, kFragmentsN = kWarpN / 8;
  static constexpr int kBytesA = kM * 128, kBytesB = kN * 128, kStageBytes = kBytesA + kBytesB;
  static constexpr int kSharedBytes = kStages * kStageBytes;

  static_assert(sizeof(A) == sizeof(B), "both operands are 16-bit or both are float");
  static_assert(kWarpM % 32 == 0 && kWarpN % 32 == 0, "a warp has a multiple of 32 x 32");
  static_assert(kPrecision == Precision::once || sizeof(A) == 4, "only float operands have a lower part");
};

// Strides are in elements; those of rows times the element's size are multiples of 16 bytes, as are the pointers.
struct GemmOperands {
  const void* a = nullptr;
  const void* b = nullptr;
  int lda = 0, ldb = 0;
  int m = 0, n = 0, k = 0;
  int64_t batch_a = 0, batch_b = 0;  // from one product of the batch to the next
  int splits = 1;                    // of K, see gemm_kernel
  bool b_is_constant = false;        // B was not written by the kernel before: it may be read ahead of its end
};

// Up to 8 neighbouring sums of one row of C, as an epilogue gets them.
struct GemmPlace {
  int batch, row, column;  // column is a multiple of 8
  int count;               // 1 to 8; the sums beyond are of columns that C does not have
};

struct GemmStorePart;

// What an epilogue is: a struct, copied to each thread, with these functions. `begin` is called once by every thread
// of a block before its first sums, after the previous kernel's end was waited for; `end` after its last.
//
// One that reads memory for its sums says so with a struct Loaded that is not empty: `load` is called for kTogether
// places before `apply(place, sums, loaded)` is for the first of them, so that their reads are under way together (the
// compiler cannot move them ahead of stores).
//
// Part: the epilogue of the first kernel where K is split; kSplits: whether the kernels for that are wanted at all.
struct GemmEpilogue {
  using Part = GemmStorePart;
  static constexpr bool kSplits = true;
  struct Loaded {};
  static constexpr int kTogether = 1;

  DVT_DEVICE void begin() {}
  DVT_DEVICE Loaded load(const GemmPlace&) { return {}; }
  DVT_DEVICE void apply(const GemmPlace&, float (&)[8]) {}
  DVT_DEVICE void end() {}
};

// Stores parts [splits][batches][m][stride] of float, for gemm_finish_kernel.
struct GemmStorePart : GemmEpilogue {
  float* parts = nullptr;
  int stride = 0;    // a multiple of 8, at least n
  int64_t part = 0;  // m * stride

  static GemmStorePart make(float* parts, int stride, int64_t part) {
    GemmStorePart store;
    store.parts = parts, store.stride = stride, store.part = part;
    return store;
  }
  DVT_DEVICE void apply(const GemmPlace& at, float (&v)[8]) {
    float4* to = reinterpret_cast<float4*>(parts + at.batch * part + static_cast<int64_t>(at.row) * stride + at.column);
    to[0] = make_float4(v[0], v[1], v[2], v[3]);
    to[1] = make_float4(v[4], v[5], v[6], v[7]);
  }
};

namespace gemm_detail {

template <class T>
DVT_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 4)
    ptx::mma_m16n8k8_tf32(c, a, b);
  else if constexpr (std::is_same_v<T, f16>)
    ptx::mma_m16n8k16_f16(c, a, b);
  else
    ptx::mma_m16n8k16_bf16(c, a, b);
}

// To the nearest number of 11 bits, in bits that the tensor cores do not read more of. The limit keeps NaN from
// becoming zero, also 0x7fffffff, that of the processor, and its negative.
DVT_DEVICE uint32_t round_operand(uint32_t x) {
  return (x & 0x80000000u) | (min(x & 0x7fffffffu, 0x7fffefffu) + 0x1000u);
}

// Registers of `float` operands hold any float.
template <class T, int kCount, int kRegisters>
DVT_DEVICE void round_operands(uint32_t (&f)[kCount][kRegisters]) {
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) f[i][r] = round_operand(f[i][r]);
  }
}

template <class Epilogue>
DVT_DEVICE void apply(const GemmOperands& p, const GemmPlace& at, float (&v)[8],
                      const typename Epilogue::Loaded& loaded, Epilogue& epilogue) {
  if (at.row >= p.m || at.column >= p.n) return;
  if constexpr (std::is_empty_v<typename Epilogue::Loaded>)
    epilogue.apply(at, v);
  else
    epilogue.apply(at, v, loaded);
}

// f = upper + lower, each of 11 bits; what is left is 2^-22 of it.
template <int kRegisters>
DVT_DEVICE void split(const uint32_t (&f)[kRegisters], uint32_t (&upper)[kRegisters], uint32_t (&lower)[kRegisters]) {
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    upper[r] = round_operand(f[r]) & 0xffffe000u;
    lower[r] = round_operand(__float_as_uint(__uint_as_float(f[r]) - __uint_as_float(upper[r])));
  }
}

}  // namespace gemm_detail

// One thread's part of a tile of C.
template <class Tile>
struct GemmSums {
  float c[Tile::kFragmentsM][Tile::kFragmentsN][4];
};

// sums = the product of rows row0 .. of op(A) and columns column0 .. of op(B) over k_begin .. k_end, where k_begin is a
// multiple of Tile::kK. `a` and `b` are the operands' first elements (of this product of the batch). Waits for the
// previous kernel's end. Shared memory (Tile::kSharedBytes of it) may be used again after a __syncthreads.
template <class Tile>
DVT_DEVICE void gemm_sums(const GemmOperands& p, const typename Tile::A* a, const typename Tile::B* b, int row0,
                          int column0, int k_begin, int k_end, char* shared, GemmSums<Tile>& sums) {
  using A = typename Tile::A;
  using B = typename Tile::B;
  using OperandA = gemm_detail::Operand<A, Tile::kMajorA, Tile::kM, Tile::kWarpM, false>;
  using OperandB = gemm_detail::Operand<B, Tile::kMajorB, Tile::kN, Tile::kWarpN, true>;
  constexpr int kStages = Tile::kStages, kK = Tile::kK, kThreads = Tile::kThreads;
  constexpr bool kCompensated = Tile::kPrecision == Precision::compensated;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp % Tile::kWarpsM * Tile::kWarpM, warp_n = warp / Tile::kWarpsM * Tile::kWarpN;
  const int tiles = (k_end - k_begin + kK - 1) / kK;

  typename OperandA::template Copies<kThreads> copies_a(a, p.lda, row0, p.m, k_begin, k_end);
  typename OperandB::template Copies<kThreads> copies_b(b, p.ldb, column0, p.n, k_begin, k_end);
  // Waits for the copies of a tile that lies in `stage` and has k_left of K.
  const auto arrive = [&](char* stage, int k_left) {
    ptx::copy_async_wait<kStages - 2>();
    if (k_left < kK) {
      OperandA::template clear_tail<kThreads>(stage, k_left);
      OperandB::template clear_tail<kThreads>(stage + Tile::kBytesA, k_left);
    }
    __syncthreads();
  };

  uint32_t fa[2][Tile::kFragmentsM][4], fb[2][Tile::kFragmentsN][2];
  const int lane_a = OperandA::lane_offset_a(warp_m), lane_b = Tile::kBytesA + OperandB::lane_offset_b(warp_n);
  const auto load = [&](int buffer, const char* stage, int step) {
    OperandA::load_a(fa[buffer], stage, lane_a, step);
    OperandB::load_b(fb[buffer], stage, lane_b, step);
    if constexpr (!kCompensated) {
      gemm_detail::round_operands<A>(fa[buffer]);
      gemm_detail::round_operands<B>(fb[buffer]);
    }
  };

#pragma unroll
  for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kFragmentsN; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) sums.c[i][j][r] = 0.0f;

  // Copies of B that need not wait come first, and all belong to the first group.
  const auto start_b = [&] {
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) copies_b.issue(shared + s * Tile::kStageBytes + Tile::kBytesA);
  };
  if (p.b_is_constant) start_b();
  ptx::wait_for_previous();
  if (!p.b_is_constant) start_b();
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    copies_a.issue(shared + s * Tile::kStageBytes);
    ptx::copy_async_commit();
  }
  ptx::allow_next();
  if (tiles <= 0) return;

  char *read = shared, *write = shared + (kStages - 1) * Tile::kStageBytes;
  const auto next_stage = [&](char* stage) {
    stage += Tile::kStageBytes;
    return stage == shared + kStages * Tile::kStageBytes ? shared : stage;
  };
  arrive(read, k_end - k_begin);
  load(0, read, 0);
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
      const int now = step % 2, next = 1 - now;
      if (step < Tile::kSteps - 1) {
        load(next, read, step + 1);
      } else if (tile + 1 < tiles) {
        read = next_stage(read);
        arrive(read, k_end - k_begin - (tile + 1) * kK);
        load(next, read, 0);
      }
      if (step == 0) {
        // Into the stage that all warps are done with since the last barrier.
        copies_a.issue(write);
        copies_b.issue(write + Tile::kBytesA);
        ptx::copy_async_commit();
        write = next_stage(write);
      }
      if constexpr (kCompensated) {
        uint32_t b_upper[Tile::kFragmentsN][2], b_lower[Tile::kFragmentsN][2];
#pragma unroll
        for (int j = 0; j < Tile::kFragmentsN; ++j) gemm_detail::split(fb[now][j], b_upper[j], b_lower[j]);
#pragma unroll
        for (int i = 0; i < Tile::kFragmentsM; ++i) {
          uint32_t a_upper[4], a_lower[4];
          gemm_detail::split(fa[now][i], a_upper, a_lower);
#pragma unroll
          for (int j = 0; j < Tile::kFragmentsN; ++j) {
            float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            gemm_detail::multiply<A>(part, a_lower, b_upper[j]);
            gemm_detail::multiply<A>(part, a_upper, b_lower[j]);
            gemm_detail::multiply<A>(part, a_upper, b_upper[j]);
#pragma unroll
            for (int r = 0; r < 4; ++r) sums.c[i][j][r] += part[r];
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
          for (int j = 0; j < Tile::kFragmentsN; ++j) gemm_detail::multiply<A>(sums.c[i][j], fa[now][i], fb[now][j]);
      }
    }
  }
}

// Hands the sums to the epilogue.
template <class Tile, class Epilogue>
DVT_DEVICE void gemm_finish_tile(const GemmOperands& p, int batch, int row0, int column0, const GemmSums<Tile>& sums,
                                 Epilogue& epilogue) {
  using OperandA = gemm_detail::Operand<typename Tile::A, Tile::kMajorA, Tile::kM, Tile::kWarpM, false>;
  using OperandB = gemm_detail::Operand<typename Tile::B, Tile::kMajorB, Tile::kN, Tile::kWarpN, true>;
  const int warp = static_cast<int>(threadIdx.x) / 32, quad = static_cast<int>(ptx::lane_id()) & 3;
  const int warp_m = warp % Tile::kWarpsM * Tile::kWarpM, warp_n = warp / Tile::kWarpsM * Tile::kWarpN;
  constexpr int kParts = Tile::kFragmentsN / 4, kPlaces = Tile::kFragmentsM * 2 * kParts;
  constexpr int kTogether = Epilogue::kTogether < kPlaces ? Epilogue::kTogether : kPlaces;
  static_assert(kPlaces % kTogether == 0, "places of a thread come in whole groups");
  const auto place = [&](int at) {
    const int row = row0 + warp_m + OperandA::row_of(at / kParts / 2, at / kParts % 2);
    const int column = column0 + warp_n + 32 * (at % kParts) + 8 * quad;
    return GemmPlace{batch, row, column, min(8, p.n - column)};
  };
#pragma unroll
  for (int first = 0; first < kPlaces; first += kTogether) {
    typename Epilogue::Loaded loaded[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const GemmPlace at = place(first + j);
      if (at.row < p.m && at.column < p.n) loaded[j] = epilogue.load(at);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int at = first + j;
      float v[8];
      OperandB::gather(sums.c[at / kParts / 2], at % kParts, at / kParts % 2, v);
      gemm_detail::apply(p, place(at), v, loaded[j], epilogue);
    }
  }
}

// The part of K that split `split` of `splits` adds up: whole stages.
template <class Tile>
DVT_DEVICE void gemm_split_range(int k, int split, int splits, int* begin, int* end) {
  const int stages = (k + Tile::kK - 1) / Tile::kK;
  *begin = static_cast<int>(static_cast<int64_t>(stages) * split / splits) * Tile::kK;
  *end = min(k, static_cast<int>(static_cast<int64_t>(stages) * (split + 1) / splits) * Tile::kK);
}

// One tile a block: x counts tiles, along N first (blocks that run together share rows of A, and all of B fits L2);
// y the splits of K; z the batch. With splits, `batch` of a place is split * batches + batch: the epilogue stores
// parts, for gemm_finish_kernel.
template <class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) gemm_kernel(GemmOperands p, Epilogue epilogue) {
  const int columns = (p.n + Tile::kN - 1) / Tile::kN;
  const int row0 = static_cast<int>(blockIdx.x) / columns * Tile::kM;
  const int column0 = static_cast<int>(blockIdx.x) % columns * Tile::kN;
  const int batch = static_cast<int>(blockIdx.z), split = static_cast<int>(blockIdx.y);
  int k_begin = 0, k_end = p.k;
  if (p.splits > 1) gemm_split_range<Tile>(p.k, split, p.splits, &k_begin, &k_end);
  GemmSums<Tile> sums;
  gemm_sums<Tile>(p, static_cast<const typename Tile::A*>(p.a) + batch * p.batch_a,
                  static_cast<const typename Tile::B*>(p.b) + batch * p.batch_b, row0, column0, k_begin, k_end,
                  ptx::shared_memory(), sums);
  epilogue.begin();
  gemm_finish_tile<Tile>(p, split * static_cast<int>(gridDim.z) + batch, row0, column0, sums, epilogue);
  epilogue.end();
}

constexpr int kGemmFinishThreads = 256;

// Adds the parts in the order of the splits, 8 columns a thread, and hands the sums to the epilogue. Blocks along x
// cover m * stride / 8 pieces, y is the batch.
template <class Epilogue>
__global__ void __launch_bounds__(kGemmFinishThreads)
    gemm_finish_kernel(const float* parts, int stride, int m, int n, int splits, Epilogue epilogue) {
  ptx::wait_for_previous();
  ptx::allow_next();
  epilogue.begin();
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kGemmFinishThreads + threadIdx.x, size = int64_t{m} * stride;
  const int row = static_cast<int>(piece * 8 / stride), column = static_cast<int>(piece * 8 % stride);
  if (row < m && column < n) {
    GemmOperands p;
    p.m = m, p.n = n;
    const GemmPlace at{static_cast<int>(blockIdx.y), row, column, min(8, n - column)};
    const typename Epilogue::Loaded loaded = epilogue.load(at);
    const float4* from = reinterpret_cast<const float4*>(parts + blockIdx.y * size + piece * 8);
    float v[8] = {};
    for (int s = 0; s < splits; ++s, from += gridDim.y * size / 4) {
      const float4 low = from[0], high = from[1];
      v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
      v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
    }
    gemm_detail::apply(p, at, v, loaded, epilogue);
  }
  epilogue.end();
}

}  // namespace dvt::cuda

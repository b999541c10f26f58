// One operand of a product on the tensor cores: how its part of a stage lies in shared memory, how it gets there, and
// how fragments are read from it. gemm.cuh says why it lies so.
#pragma once

#include <cstdint>

#include "cuda/numeric.cuh"
#include "cuda/ptx.cuh"

namespace dvt::cuda {

// Which index of an operand is contiguous: K, or the one that it shares with C.
enum class Major { k, other };

namespace gemm_detail {

// One operand's part of a stage: kExtent rows of 128 bytes where K is contiguous, else 128 / sizeof(T) rows of kExtent
// elements. kWarp: the extent of a warp.
template <class T, Major kMajor, int kExtent, int kWarp, bool kIsB>
struct Operand {
  static constexpr bool kAlongK = kMajor == Major::k;
  static constexpr int kPiece = 16 / int{sizeof(T)};  // elements of one copy
  static constexpr int kPieces = kAlongK ? 8 : kExtent / kPiece;
  static constexpr int kRows = kAlongK ? kExtent : 128 / int{sizeof(T)};
  static constexpr int kRowBytes = kPieces * 16;
  static_assert(kPieces % 8 == 0, "rows of shared memory are multiples of 128 bytes");
  static_assert(kAlongK || sizeof(T) == 4 || kWarp == 32 || kWarp % 64 == 0, "pieces of a warp share their upper bits");

  // The rows that the 8 lanes of one wavefront read differ in what this returns (float, other: in bits 1 and 2, while
  // the lanes read pairs of pieces).
  static DVT_DEVICE int swizzle(int row) {
    if (!kAlongK && sizeof(T) == 4) return (row & 3) << 1;
    if (kAlongK && kIsB) return (row & 1) | ((row >> 3) & 3) << 1;
    return row & 7;
  }
  static DVT_DEVICE int offset(int row, int piece) { return row * kRowBytes + ((piece ^ swizzle(row)) << 4); }

  // A thread's copies of one tile after the other. Its pieces of a tile are kStep rows apart.
  template <int kThreads>
  struct Copies {
    static constexpr int kStep = kThreads / kPieces;
    static_assert(kThreads % kPieces == 0 && (kStep % 32 == 0 || !kAlongK || !kIsB || kStep == 16) &&
                      (kStep % 8 == 0 || (sizeof(T) == 4 && kStep % 4 == 0)),
                  "a thread's pieces have the same swizzle, or differ in one bit");
    const char* from;             // this thread's first piece of the next tile
    int64_t step;                 // bytes from one of its pieces to the next
    int64_t advance;              // and from tile to tile
    int at;                       // where the first piece goes
    int rows_left, columns_left;  // of the operand, from that piece on

    // first: the first row (K contiguous) or column of the block; size: how many the operand has.
    DVT_DEVICE Copies(const T* operand, int stride, int first, int size, int k_begin, int k_end) {
      const int row = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
      const int row0 = kAlongK ? first : k_begin, column0 = kAlongK ? k_begin : first;
      const int64_t pitch = static_cast<int64_t>(stride) * int64_t{sizeof(T)};
      from =
          reinterpret_cast<const char*>(operand) + (row0 + row) * pitch + (column0 + piece * kPiece) * int{sizeof(T)};
      step = kStep * pitch;
      advance = kAlongK ? 128 : kRows * pitch;
      at = offset(row, piece);
      rows_left = (kAlongK ? size : k_end) - row0 - row;
      columns_left = (kAlongK ? k_end : size) - column0 - piece * kPiece;
    }
    // What the operand does not have becomes zero, whole pieces of it.
    DVT_DEVICE void issue(char* tile) {
      const char* p = from;
#pragma unroll
      for (int i = 0; i < kRows * kPieces / kThreads + (kRows * kPieces % kThreads != 0); ++i) {
        if (kRows * kPieces % kThreads != 0 && static_cast<int>(threadIdx.x) + i * kThreads >= kRows * kPieces) break;
        const int flip = kAlongK && kIsB && kStep % 32 != 0 ? (i % 2) << 6 : 0;
        ptx::copy_async_16(tile + (at ^ flip) + i * kStep * kRowBytes, p, rows_left > i * kStep && columns_left > 0);
        p += step;
      }
      from += advance;
      if (kAlongK)
        columns_left -= 128 / int{sizeof(T)};
      else
        rows_left -= kRows;
    }
  };

  // Zeroes what the last piece of K has beyond the end, by the thread that copied it: it may be anything, even NaN.
  template <int kThreads>
  static DVT_DEVICE void clear_tail(char* tile, int k_left) {
    if constexpr (kAlongK) {
      if (k_left % kPiece == 0 || static_cast<int>(threadIdx.x) % kPieces != k_left / kPiece) return;
#pragma unroll 1
      for (int row = static_cast<int>(threadIdx.x) / kPieces; row < kRows; row += kThreads / kPieces) {
        T* piece = reinterpret_cast<T*>(tile + offset(row, k_left / kPiece));
#pragma unroll 1
        for (int j = k_left % kPiece; j < kPiece; ++j) piece[j] = T{};
      }
    }
  }

  // Fragments of the warp's rows of A for one step: f[i] is 16 of them, see `row_of`. first: the warp's first row.
  static DVT_DEVICE int lane_offset_a(int first) {
    const int lane = static_cast<int>(ptx::lane_id());
    if (kAlongK) return offset(first + (lane & 15), lane >> 4);
    if (sizeof(T) == 2) return offset((lane & 7) + ((lane >> 4) << 3), first / 8 + ((lane >> 3) & 1));
    return offset(lane & 3, first / 4 + (lane >> 2));
  }
  template <int kCount>
  static DVT_DEVICE void load_a(uint32_t (&f)[kCount][4], const char* tile, int lane_offset, int step) {
    if constexpr (kAlongK) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) ptx::ldmatrix_x4(f[i], tile + (lane_offset ^ (step << 5)) + i * 16 * kRowBytes);
    } else if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        ptx::ldmatrix_x4_trans(f[i], tile + along(lane_offset, 2 * i) + step * 16 * kRowBytes);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 2)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 v = load_piece(tile + lane_offset + i * 64 + (8 * step + 4 * half) * kRowBytes);
          f[i][2 * half] = v.x, f[i][2 * half + 1] = v.y;
          f[i + 1][2 * half] = v.z, f[i + 1][2 * half + 1] = v.w;
        }
    }
  }
  // The row, within the warp's, of sums [i][2 half], [i][2 half + 1] in this lane.
  static DVT_DEVICE int row_of(int i, int half) {
    const int group = static_cast<int>(ptx::lane_id()) >> 2;
    if (!kAlongK && sizeof(T) == 4) return 32 * (i / 2) + 4 * group + 2 * (i % 2) + half;
    return 16 * i + 8 * half + group;
  }

  // Fragments of the warp's columns of B: f[4 p + j] are 8 of the columns 32 p + (0 .. 31), chosen so that lane quad of
  // a row gets columns 8 quad + (0 .. 7): see `gather`.
  static DVT_DEVICE int lane_offset_b(int first) {
    const int lane = static_cast<int>(ptx::lane_id()), r = lane & 7, matrix = lane >> 3;
    if (kAlongK) return offset(first + 8 * (r >> 1) + 2 * (matrix >> 1) + (r & 1), matrix & 1);
    if (sizeof(T) == 2) return offset(r + 8 * (matrix & 1), first / 8 + (matrix >> 1));
    return offset(lane & 3, first / 4 + (lane >> 2));
  }
  template <int kCount>
  static DVT_DEVICE void load_b(uint32_t (&f)[kCount][2], const char* tile, int lane_offset, int step) {
    if constexpr (!kAlongK && sizeof(T) == 4) {
#pragma unroll
      for (int j = 0; j < kCount; j += 4)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 v = load_piece(tile + lane_offset + j * 32 + (8 * step + 4 * half) * kRowBytes);
          f[j][half] = v.x, f[j + 1][half] = v.y, f[j + 2][half] = v.z, f[j + 3][half] = v.w;
        }
    } else {
#pragma unroll
      for (int j = 0; j < kCount; j += 2) {
        uint32_t both[4];
        if constexpr (kAlongK)
          ptx::ldmatrix_x4(both, tile + (lane_offset ^ (step << 5)) + (8 * (j & ~3) + 2 * (j & 3)) * kRowBytes);
        else
          ptx::ldmatrix_x4_trans(both, tile + along(lane_offset, j) + step * 16 * kRowBytes);
        f[j][0] = both[0], f[j][1] = both[1], f[j + 1][0] = both[2], f[j + 1][1] = both[3];
      }
    }
  }
  // The sums of columns 32 p + 8 quad + (0 .. 7) of one row; every lane of the warp takes part.
  template <int kCount>
  static DVT_DEVICE void gather(const float (&sums)[kCount][4], int p, int half, float (&out)[8]) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int to = sizeof(T) == 4 && kMajor == Major::other ? 4 * e + j : 2 * j + e;
        out[to] = sums[4 * p + j][2 * half + e];
      }
    if (sizeof(T) == 2 && kMajor == Major::other) transpose_quad(out);
  }

 private:
  static DVT_DEVICE uint4 load_piece(const char* p) { return *reinterpret_cast<const uint4*>(p); }
  // `pieces` further along a row, an even number: below 8 of them they only change bits that the swizzle may have
  // changed, and none carries.
  static DVT_DEVICE int along(int lane_offset, int pieces) {
    return (lane_offset ^ ((pieces & 7) << 4)) + ((pieces & ~7) << 4);
  }
  // Lane q of four has pair q of each of four octets; it gets the four pairs of octet q.
  static DVT_DEVICE void transpose_quad(float (&v)[8]) {
    const uint32_t quad = ptx::lane_id() & 3;
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
      const bool upper = (quad & static_cast<uint32_t>(bit)) != 0;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        if (s & bit) continue;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float &low = v[2 * s + e], &high = v[2 * (s + bit) + e];
          const float got = __shfl_xor_sync(0xffffffffu, upper ? low : high, bit);
          if (upper)
            low = got;
          else
            high = got;
        }
      }
    }
  }
};

}  // namespace gemm_detail
}  // namespace dvt::cuda

// Attention for a few rows at a time, one instruction set a compilation; see attention.h.
//
// A tile of kMr queries meets a block of kBlock keys: its scores (kMr x kBlock floats, at most 25 KB) stay in the first
// cache between the two products. With 2 * 64 multiplications a score, the power of two of each, some ten instructions
// a vector, costs about a tenth of the time.
#include "transformer/attention/attention.h"

#include "core/vector_math.h"
#include "transformer/tile.h"

namespace dvt {
namespace DVT_ISA {
namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kScoreStride = kBlock + 16;  // not a multiple of what maps rows to one set of the cache
// Keys and values of a head come from the third cache for its first tile of rows: fetch them 8 KB ahead.
constexpr int kAhead = 64;
constexpr float kFarBelow = -1.0e30f;  // a score that nothing is left of; finite, and so is what is taken from it

struct Scratch {
  float* scores;  // [kMr][kScoreStride]
  float* sums;    // [kMr][whole panels of head_dim]
  int64_t sums_stride;
};

template <int kRows>
void rows_of_head(const AttentionCall& call, int64_t row, const Scratch& scratch) {
  const KeyValueShape& shape = call.shape;
  const int64_t head_dim = shape.head_dim, value_panels = shape.value_panels();
  const float* q = call.q + row * call.q_stride;
  float largest[kRows], total[kRows] = {};
  for (float& top : largest) top = kFarBelow;
  for (int64_t first = 0; first < shape.tokens; first += kBlock) {
    const int64_t count = shape.tokens - first < kBlock ? shape.tokens - first : kBlock;
    const int64_t padded = (count + kNr - 1) / kNr * kNr;
    vfloat tops[kRows];
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) tops[i] = broadcast(kFarBelow);
    for (int64_t j = 0; j < padded; j += kNr) {
      vfloat s[kRows][2] = {};
      multiply<kRows, kAhead>(head_dim, q, call.q_stride, call.keys + (first + j) * head_dim, s);
      float* to = scratch.scores + j;
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        store(to + i * kScoreStride, s[i][0]);
        store(to + i * kScoreStride + kLanes, s[i][1]);
      }
      if (j + kNr > count) {  // what stands for no key gets no weight
        for (int i = 0; i < kRows; ++i)
          for (int64_t c = count; c < padded; ++c) scratch.scores[i * kScoreStride + c] = kFarBelow;
      }
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i)
        tops[i] = vmax(tops[i], vmax(load(to + i * kScoreStride), load(to + i * kScoreStride + kLanes)));
    }
    for (int i = 0; i < kRows; ++i) {
      float lanes[kLanes];
      std::memcpy(lanes, &tops[i], sizeof lanes);
      float top = largest[i];
      for (int l = 0; l < kLanes; ++l) top = lanes[l] > top ? lanes[l] : top;
      float* scores = scratch.scores + i * kScoreStride;
      const vfloat shift = broadcast(top);
      vfloat sum0 = {}, sum1 = {};
      for (int64_t j = 0; j < padded; j += kNr) {
        const vfloat p0 = vexp2(load(scores + j) - shift);
        const vfloat p1 = vexp2(load(scores + j + kLanes) - shift);
        store(scores + j, p0);
        store(scores + j + kLanes, p1);
        sum0 += p0;
        sum1 += p1;
      }
      const float block_total = sum(sum0 + sum1);
      float* sums = scratch.sums + i * scratch.sums_stride;
      if (first == 0) {
        total[i] = block_total;
      } else {
        const float shrink = vexp2(broadcast(largest[i] - top))[0];
        total[i] = total[i] * shrink + block_total;
        if (shrink != 1.0f)
          for (int64_t d = 0; d < value_panels * kNr; d += kLanes) store(sums + d, load(sums + d) * shrink);
      }
      largest[i] = top;
    }
    for (int64_t panel = 0; panel < value_panels; ++panel) {
      vfloat o[kRows][2] = {};
      multiply<kRows, kAhead>(count, scratch.scores, kScoreStride, call.values + (panel * shape.tokens + first) * kNr,
                              o);
      float* to = scratch.sums + panel * kNr;
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i, to += scratch.sums_stride) {
        if (first != 0) {
          o[i][0] += load(to);
          o[i][1] += load(to + kLanes);
        }
        store(to, o[i][0]);
        store(to + kLanes, o[i][1]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    const float* sums = scratch.sums + i * scratch.sums_stride;
    float* out = call.out + (row + i) * call.out_stride;
    const float scale = 1.0f / total[i];
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) store(out + d, load(sums + d) * scale);
    if (d < head_dim) store_partial(out + d, load(sums + d) * scale, static_cast<int>(head_dim - d));
  }
}

int64_t scratch_floats(int64_t head_dim) { return kMr * (kScoreStride + (head_dim + kNr - 1) / kNr * kNr); }

void run(const AttentionCall& call) {
  Scratch scratch;
  scratch.scores = call.scratch;
  scratch.sums = call.scratch + kMr * kScoreStride;
  scratch.sums_stride = call.shape.value_panels() * kNr;
  const int64_t tiles = (call.rows + kMr - 1) / kMr;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = call.rows * t / tiles;
    switch (call.rows * (t + 1) / tiles - row) {
      case 1: rows_of_head<1>(call, row, scratch); break;
      case 2: rows_of_head<2>(call, row, scratch); break;
      case 3: rows_of_head<3>(call, row, scratch); break;
      case 4: rows_of_head<4>(call, row, scratch); break;
      case 5: rows_of_head<5>(call, row, scratch); break;
      case 6: rows_of_head<6>(call, row, scratch); break;
      case 7: rows_of_head<7 <= kMr ? 7 : 1>(call, row, scratch); break;
      case 8: rows_of_head<8 <= kMr ? 8 : 1>(call, row, scratch); break;
      case 9: rows_of_head<9 <= kMr ? 9 : 1>(call, row, scratch); break;
      case 10: rows_of_head<10 <= kMr ? 10 : 1>(call, row, scratch); break;
      case 11: rows_of_head<11 <= kMr ? 11 : 1>(call, row, scratch); break;
      case 12: rows_of_head<12 <= kMr ? 12 : 1>(call, row, scratch); break;
    }
  }
}

// Lane l of the result is lane order[l] of a and b, one after the other.
DVT_INLINE vfloat shuffle(vfloat a, vfloat b, vint order) {
#if defined(__clang__)
  vfloat result;
  for (int l = 0; l < kLanes; ++l) result[l] = order[l] < kLanes ? a[order[l]] : b[order[l] - kLanes];
  return result;
#else
  return __builtin_shuffle(a, b, order);
#endif
}

// rows[i][j] becomes rows[j][i]: interleaving the first half of the vectors with the second, once for each bit of a
// lane's number.
DVT_INLINE void transpose(vfloat (&rows)[kLanes]) {
  vint low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + (i % 2) * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
#pragma GCC unroll 4
  for (int bit = 1; bit < kLanes; bit *= 2) {
    vfloat next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = shuffle(rows[i], rows[i + kLanes / 2], low);
      next[2 * i + 1] = shuffle(rows[i], rows[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

void store_keys(const KeyValueShape& shape, int64_t first, int64_t rows, const float* k, int64_t stride, float* keys) {
  const int64_t head_dim = shape.head_dim;
  const auto place = [&](int64_t token) { return keys + token / kNr * kNr * head_dim + token % kNr; };
  for (int64_t r = 0; r < rows;) {
    float* to = place(first + r);
    const float* from = k + r * stride;
    int64_t d = 0;
    int64_t count = 1;
    if ((first + r) % kLanes == 0 && r + kLanes <= rows) {
      count = kLanes;
      for (; d + kLanes <= head_dim; d += kLanes) {
        vfloat block[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) block[i] = load(from + i * stride + d);
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + (d + i) * kNr, block[i]);
      }
    }
    for (; d < head_dim; ++d)
      for (int64_t i = 0; i < count; ++i) to[d * kNr + i] = from[i * stride + d];
    r += count;
  }
  if (first + rows == shape.tokens)
    for (int64_t token = shape.tokens; token % kNr != 0; ++token)
      for (int64_t d = 0; d < head_dim; ++d) place(token)[d * kNr] = 0;
}

void store_values(const KeyValueShape& shape, int64_t first, int64_t rows, const float* v, int64_t stride,
                  float* values) {
  for (int64_t panel = 0; panel < shape.value_panels(); ++panel) {
    const int64_t d = panel * kNr, width = shape.head_dim - d < kNr ? shape.head_dim - d : kNr;
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = v + r * stride + d;
      float* to = values + (panel * shape.tokens + first + r) * kNr;
      if (width == kNr) {
        store(to, load(from));
        store(to + kLanes, load(from + kLanes));
      } else {
        for (int64_t c = 0; c < kNr; ++c) to[c] = c < width ? from[c] : 0.0f;
      }
    }
  }
}

}  // namespace

const AttentionKernels attention_kernels = {DVT_TEXT(DVT_ISA), kMr, kNr, scratch_floats, store_keys, store_values, run};

}  // namespace DVT_ISA
}  // namespace dvt

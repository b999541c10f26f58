// The packed product, one instruction set a compilation.
//
// A tile is up to kMr rows by two vectors of output channels: 12 x 2 sums where there are 32 registers (24 + 2 of
// weights + 1 number of x), 6 x 2 where there are 16. A panel of weights serves all rows before the next one is
// touched, and while it does, the next one is fetched ahead: at batch 1 the weights of a ViT come from far away, and
// each is used for a few hundred rows only.
#include "transformer/linear/linear.h"

#include "transformer/activation/activate.h"
#include "transformer/tile.h"

namespace dvt {
namespace DVT_ISA {
namespace {

constexpr int64_t kRound = 8;  // channels between two fetches ahead
// Channels that are summed in registers before the sum goes to y: a chain of thousands would lose digits, and this much
// of a panel stays in the first cache.
constexpr int64_t kDepth = 256;

// Out of line, so that it takes no registers from the loop over channels.
template <Activation kActivation>
__attribute__((noinline)) void activate_tile(float* y, int64_t stride, int rows) {
  for (int i = 0; i < rows; ++i, y += stride) {
    store(y, activate<kActivation>(load(y)));
    store(y + kLanes, activate<kActivation>(load(y + kLanes)));
  }
}

void activate_tile(Activation activation, float* y, int64_t stride, int rows) {
  switch (activation) {
    case Activation::gelu: return activate_tile<Activation::gelu>(y, stride, rows);
    case Activation::gelu_tanh: return activate_tile<Activation::gelu_tanh>(y, stride, rows);
    case Activation::quick_gelu: return activate_tile<Activation::quick_gelu>(y, stride, rows);
    case Activation::silu: return activate_tile<Activation::silu>(y, stride, rows);
    case Activation::relu: return activate_tile<Activation::relu>(y, stride, rows);
  }
}

struct Tile {
  const float* x;
  int64_t x_stride;
  const void* panel;
  int64_t k;
  const float* bias;  // null: none
  float* y;
  int64_t y_stride;
  bool accumulate;
  const char* ahead;  // what to fetch ahead, a line of 64 bytes at a time
  int64_t lines;      // how many in this tile
};

template <class Weight, int kRows>
void tile(const Tile& t) {
  vfloat sums[kRows][2] = {};
  const Weight* panel = static_cast<const Weight*>(t.panel);
  const float* x = t.x;
  const int64_t stride = t.x_stride;
  int64_t k = 0;
  const char* ahead = t.ahead;
  const int64_t per_round = (t.lines * kRound + t.k - 1) / (t.k > 0 ? t.k : 1);
  if (per_round > 0) {
    for (; k + kRound <= t.k; k += kRound) {
      for (int64_t l = 0; l < per_round; ++l, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      multiply<kRows>(kRound, x + k, stride, panel + k * kNr, sums);
    }
  }
  multiply<kRows>(t.k - k, x + k, stride, panel + k * kNr, sums);
  vfloat b0 = {}, b1 = {};
  if (t.bias) {
    b0 = load(t.bias);
    b1 = load(t.bias + kLanes);
  }
  float* y = t.y;
  if (t.accumulate) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i, y += t.y_stride) {
      store(y, load(y) + (sums[i][0] + b0));
      store(y + kLanes, load(y + kLanes) + (sums[i][1] + b1));
    }
  } else {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i, y += t.y_stride) {
      store(y, sums[i][0] + b0);
      store(y + kLanes, sums[i][1] + b1);
    }
  }
}

template <class Weight>
DVT_INLINE void run_tile(int rows, const Tile& t) {
  switch (rows) {
    case 1: return tile<Weight, 1>(t);
    case 2: return tile<Weight, 2>(t);
    case 3: return tile<Weight, 3>(t);
    case 4: return tile<Weight, 4>(t);
    case 5: return tile<Weight, 5>(t);
    case 6: return tile<Weight, 6>(t);
    case 7: return tile<Weight, 7 <= kMr ? 7 : 1>(t);
    case 8: return tile<Weight, 8 <= kMr ? 8 : 1>(t);
    case 9: return tile<Weight, 9 <= kMr ? 9 : 1>(t);
    case 10: return tile<Weight, 10 <= kMr ? 10 : 1>(t);
    case 11: return tile<Weight, 11 <= kMr ? 11 : 1>(t);
    case 12: return tile<Weight, 12 <= kMr ? 12 : 1>(t);
  }
}

template <class Weight>
void run_as(const LinearCall& call) {
  const PackedLinear& w = *call.weights;
  const Weight* panels = reinterpret_cast<const Weight*>(w.panels);
  const int64_t tiles = (call.rows + kMr - 1) / kMr;
  Tile t;
  t.x_stride = call.x_stride;
  t.y_stride = call.y_stride;
  for (int64_t panel = call.panel_begin; panel < call.panel_end; ++panel) {
    const float* bias = call.add_bias ? w.bias + panel * kNr : nullptr;
    float* y = call.y + (panel - call.panel_begin) * kNr;
    int64_t k = call.k_begin;
    do {
      const int64_t end = call.k_end - k < kDepth ? call.k_end : k + kDepth;
      const bool first = k == call.k_begin, last = end == call.k_end;
      t.k = end - k;
      t.panel = panels + (panel * w.in + k) * kNr;
      t.bias = first ? bias : nullptr;
      t.accumulate = call.accumulate || !first;
      const char* next = reinterpret_cast<const char*>(panels + ((panel + 1) * w.in + call.k_begin) * kNr);
      if (!last) next = reinterpret_cast<const char*>(panels + (panel * w.in + end) * kNr);
      const bool more = !last || panel + 1 < call.panel_end;
      const int64_t lines = more ? t.k * kNr * static_cast<int64_t>(sizeof(Weight)) / 64 : 0;
      for (int64_t i = 0; i < tiles; ++i) {
        // Rows are shared out evenly: thirteen are seven and six, not twelve and one.
        const int64_t row = call.rows * i / tiles;
        const int rows = static_cast<int>(call.rows * (i + 1) / tiles - row);
        t.x = call.x + row * call.x_stride + (k - call.k_begin);
        t.y = y + row * call.y_stride;
        t.ahead = next + lines * i / tiles * 64;
        t.lines = lines * (i + 1) / tiles - lines * i / tiles;
        run_tile<Weight>(rows, t);
        if (call.activate && last) activate_tile(call.activation, t.y, t.y_stride, rows);
      }
      k = end;
    } while (k < call.k_end);
  }
}

void run(const LinearCall& call) {
  switch (call.weights->dtype) {
    case Dtype::float16: return run_as<uint16_t>(call);
    case Dtype::bfloat16: return run_as<bfloat16>(call);
    default: return run_as<float>(call);
  }
}

}  // namespace

const LinearKernels linear_kernels = {DVT_TEXT(DVT_ISA), kMr, kNr, run};

}  // namespace DVT_ISA
}  // namespace dvt

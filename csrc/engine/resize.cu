// Views of an image, uint8 or float32, resized as Pillow does it and normalised: [views, 3, height, width].
//
// A block makes a tile of 32 target pixels along the axis that is resized first ("along") by 8, 16 or 32 across it. It
// walks over the source lines that the tile needs, 32 at a time: these are brought to shared memory, resized along,
// rounded to 8 bits where the source has 8, and at once added to the tile's sums across. So the result of the first
// pass never leaves the block, and any shrinking factor runs in the same 38 KB: longer lines come in segments. Along a
// line the lanes of a warp are target pixels, whose filters are read from the tables with neighbours beside each other.
//
// Where columns come first (Pillow 13, images that shrink much more in height) the two axes change their roles, by
// strides and tables alone.
//
// Of uint8 pixels every sum is an integer below 2^31, exact in any order: with the weights of resize_tables.cu the bits
// are those of the CPU and of Pillow.
//
// Bytes: 3 a source pixel (again for what tiles share) and 12 or 6 a target pixel. Operations: 3 multiply-adds a tap of
// each line and target column, 3 a tap of each target pixel.
#include <algorithm>
#include <cmath>

#include "cuda/numeric.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "engine/resize_axis.h"
#include "engine/resize_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int kChannels = 3;
constexpr int kLanesAlong = 32;  // target pixels along: a warp
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kLines = 32;  // source lines at once
constexpr int kLinesAWarp = kLines / kWarps;

// One axis as a block sees it: the tables of its view.
struct Filter {
  const int32_t *first, *taps, *weights;
  int32_t target;
};

struct Params {
  ResizeTable along, across;
  const char* source;
  int64_t view, along_stride, across_stride, channel;  // strides of the source, in bytes
  void* out;
  int64_t out_along, out_across, out_plane;  // strides of the result, in elements
  float scale[kChannels], shift[kChannels];
  uint64_t mirrored;
  int tiles_along;
  bool table_each;
  bool mirror_along;     // the axis that is mirrored is the one along
  bool lanes_are_lines;  // neighbours in memory are across
  bool packed;           // pixels of 3 bytes in lines that start at multiples of 4: read 4 at a time
  bool packed_bgr;       // these have their channels the other way round
};

// uint8 pixels: 4 bytes each in shared memory, sums of integers.
struct Bytes {
  static constexpr bool kCanBePacked = true;
  static constexpr int kBlocks = 4;     // on a multiprocessor: what their registers are limited by
  static constexpr int kSegment = 256;  // source pixels of a line at once
  static constexpr int kPitch = kSegment + kSegment / 32 + 1;
  typedef uint32_t Staged[kLines][kPitch];
  typedef uint32_t Between[kLines][kLanesAlong];
  typedef int32_t Sum;
  static constexpr Sum kStart = 1 << (kFractionBits - 1);  // for rounding

  DVT_DEVICE static Sum weight(int32_t bits) { return bits; }
  DVT_DEVICE static void add(Sum weight, uint32_t pixel, Sum (&sums)[kChannels]) {
    sums[0] += weight * static_cast<int32_t>(pixel & 0xffu);
    sums[1] += weight * static_cast<int32_t>(pixel >> 8 & 0xffu);
    sums[2] += weight * static_cast<int32_t>(pixel >> 16 & 0xffu);
  }
  DVT_DEVICE static int32_t clip(Sum sum) { return min(max(sum >> kFractionBits, 0), 255); }
  DVT_DEVICE static float value(Sum sum) { return static_cast<float>(clip(sum)); }

  DVT_DEVICE static void add_staged(const Staged& staged, int line, int place, Sum weight, Sum (&sums)[kChannels]) {
    add(weight, staged[line][place], sums);
  }
  DVT_DEVICE static void add_between(const Between& between, int line, int lane, Sum weight, Sum (&sums)[kChannels]) {
    add(weight, between[line][lane], sums);
  }
  DVT_DEVICE static void put_between(Between& between, int line, int lane, const Sum (&sums)[kChannels]) {
    between[line][lane] = static_cast<uint32_t>(clip(sums[0]) | clip(sums[1]) << 8 | clip(sums[2]) << 16);
  }
  DVT_DEVICE static void stage(const char* pixel, int64_t channel, int line, int place, Staged& staged) {
    const uint8_t* p = reinterpret_cast<const uint8_t*>(pixel);
    const uint32_t r = p[0], g = p[channel], b = p[2 * channel];
    staged[line][place] = r | g << 8 | b << 16;
  }
};

// float32 pixels: three planes.
struct Floats {
  static constexpr bool kCanBePacked = false;
  static constexpr int kBlocks = 3;
  static constexpr int kSegment = 64;
  static constexpr int kPitch = kSegment + kSegment / 32 + 1;
  typedef float Staged[kChannels][kLines][kPitch];
  typedef float Between[kChannels][kLines][kLanesAlong];
  typedef float Sum;
  static constexpr Sum kStart = 0;

  DVT_DEVICE static Sum weight(int32_t bits) { return __int_as_float(bits); }
  DVT_DEVICE static float value(Sum sum) { return sum; }
  DVT_DEVICE static void add_staged(const Staged& staged, int line, int place, Sum weight, Sum (&sums)[kChannels]) {
    for (int c = 0; c < kChannels; ++c) sums[c] = fmaf(weight, staged[c][line][place], sums[c]);
  }
  DVT_DEVICE static void add_between(const Between& between, int line, int lane, Sum weight, Sum (&sums)[kChannels]) {
    for (int c = 0; c < kChannels; ++c) sums[c] = fmaf(weight, between[c][line][lane], sums[c]);
  }
  DVT_DEVICE static void put_between(Between& between, int line, int lane, const Sum (&sums)[kChannels]) {
    for (int c = 0; c < kChannels; ++c) between[c][line][lane] = sums[c];
  }
  DVT_DEVICE static void stage(const char* pixel, int64_t channel, int line, int place, Staged& staged) {
    for (int c = 0; c < kChannels; ++c) staged[c][line][place] = *reinterpret_cast<const float*>(pixel + c * channel);
  }
};

template <class Pixels>
struct Shared {
  typename Pixels::Staged staged;
  typename Pixels::Between between;
};

// Where pixel x of a segment lies in its line: lanes that read with any stride come to different banks, mostly.
DVT_DEVICE int place_of(int x) { return x + (x >> 5); }

DVT_DEVICE Filter filter_of(const ResizeTable& table, int view) {
  const int64_t at = static_cast<int64_t>(view) * table.target;
  return {table.first + at, table.taps + at, table.weights + at * table.capacity, table.target};
}

// The first source pixel, and the one after the last, that target pixels [begin, begin + count) see; count at most 32.
DVT_DEVICE void window_of(const Filter& filter, int begin, int count, int* first, int* end) {
  const int lane = static_cast<int>(ptx::lane_id());
  int low = 0x7fffffff, high = 0;
  if (lane < count && begin + lane < filter.target) {
    low = filter.first[begin + lane];
    high = low + filter.taps[begin + lane];
  }
  *first = __reduce_min_sync(0xffffffffu, low);
  *end = __reduce_max_sync(0xffffffffu, high);
}

// Four pixels of 3 bytes, at an address that is a multiple of 4.
DVT_DEVICE void stage_packed(const char* pixels, bool bgr, int line, int x, Bytes::Staged& staged) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(pixels);
  const uint32_t a = words[0], b = words[1], c = words[2];
  const uint32_t four[4] = {a, a >> 24 | b << 8, b >> 16 | c << 16, c >> 8};
#pragma unroll
  for (int i = 0; i < 4; ++i) staged[line][place_of(x + i)] = bgr ? __byte_perm(four[i], 0, 0x4012) : four[i];
}

// Source pixels [begin, begin + count) of `lines` lines from `line0` on, to shared memory. In packed lines `begin` is a
// multiple of 4.
template <class Pixels>
DVT_DEVICE void stage_lines(const Params& params, const char* source, int line0, int lines, int begin, int count,
                            typename Pixels::Staged& staged) {
  const int lane = static_cast<int>(ptx::lane_id()), warp = static_cast<int>(threadIdx.x) / 32;
  if (params.lanes_are_lines) {
    if (lane >= lines) return;
    const char* pixel = source + (line0 + lane) * params.across_stride + (begin + warp) * params.along_stride;
    for (int x = warp; x < count; x += kWarps, pixel += kWarps * params.along_stride)
      Pixels::stage(pixel, params.channel, lane, place_of(x), staged);
    return;
  }
  for (int line = warp; line < lines; line += kWarps) {
    const char* row = source + (line0 + line) * params.across_stride + begin * params.along_stride;
    int done = 0;
    if constexpr (Pixels::kCanBePacked) {
      if (params.packed) {
        const char* bytes = row - (params.packed_bgr ? kChannels - 1 : 0);
        done = count / 4 * 4;
        for (int x = lane * 4; x < done; x += 128)
          stage_packed(bytes + x * kChannels, params.packed_bgr, line, x, staged);
      }
    }
    for (int x = done + lane; x < count; x += 32)
      Pixels::stage(row + x * params.along_stride, params.channel, line, place_of(x), staged);
  }
}

// kRows: target pixels across, of each warp; the tile has 8 kRows.
template <class Pixels, class Out, int kRows>
__global__ void __launch_bounds__(kThreads, kRows == 4 ? 3 : Pixels::kBlocks) resize_kernel(Params params) {
  typedef typename Pixels::Sum Sum;
  Shared<Pixels>& shared = ptx::shared<Shared<Pixels>>();
  const int lane = static_cast<int>(ptx::lane_id()), warp = static_cast<int>(threadIdx.x) / 32;
  const int view = static_cast<int>(blockIdx.y);
  const int tile = static_cast<int>(blockIdx.x);
  const int u0 = tile % params.tiles_along * kLanesAlong, v0 = tile / params.tiles_along * kWarps * kRows;
  const Filter along = filter_of(params.along, params.table_each ? view : 0);
  const Filter across = filter_of(params.across, params.table_each ? view : 0);
  const char* source = params.source + view * params.view;
  const int u = u0 + lane;
  ptx::allow_next();
  ptx::wait_for_previous();

  int u_first, u_end, line_first, line_end;
  window_of(along, u0, kLanesAlong, &u_first, &u_end);
  window_of(across, v0, kWarps * kRows, &line_first, &line_end);
  if (params.packed) u_first &= ~3;
  const int first = u < along.target ? along.first[u] : 0;
  const int taps = u < along.target ? along.taps[u] : 0;

  Sum totals[kRows][kChannels];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kChannels; ++c) totals[r][c] = Pixels::kStart;

  for (int line0 = line_first; line0 < line_end; line0 += kLines) {
    const int lines = min(kLines, line_end - line0);
    Sum sums[kLinesAWarp][kChannels];
#pragma unroll
    for (int i = 0; i < kLinesAWarp; ++i)
      for (int c = 0; c < kChannels; ++c) sums[i][c] = Pixels::kStart;

    for (int begin = u_first; begin < u_end; begin += Pixels::kSegment) {
      const int count = min(Pixels::kSegment, u_end - begin);
      stage_lines<Pixels>(params, source, line0, lines, begin, count, shared.staged);
      __syncthreads();
      const int stop = min(first + taps, begin + count);
      for (int x = max(first, begin); x < stop; ++x) {
        const Sum weight = Pixels::weight(along.weights[static_cast<int64_t>(x - first) * along.target + u]);
        const int place = place_of(x - begin);
#pragma unroll
        for (int i = 0; i < kLinesAWarp; ++i)
          if (warp + i * kWarps < lines) Pixels::add_staged(shared.staged, warp + i * kWarps, place, weight, sums[i]);
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kLinesAWarp; ++i)
      if (warp + i * kWarps < lines) Pixels::put_between(shared.between, warp + i * kWarps, lane, sums[i]);
    __syncthreads();

    // The next write to `between` comes after the barriers of the next segment.
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int v = v0 + warp + r * kWarps;
      if (v >= across.target) continue;
      const int from = across.first[v];
      const int stop = min(from + across.taps[v], line0 + lines);
      for (int y = max(from, line0); y < stop; ++y) {
        const Sum weight = Pixels::weight(across.weights[static_cast<int64_t>(y - from) * across.target + v]);
        Pixels::add_between(shared.between, y - line0, lane, weight, totals[r]);
      }
    }
  }

  if (u >= along.target) return;
  const bool mirrored = params.mirrored >> (view & 63) & 1u;
  Out* out = static_cast<Out*>(params.out) + view * (kChannels * params.out_plane);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int v = v0 + warp + r * kWarps;
    if (v >= across.target) continue;
    const int to_u = mirrored && params.mirror_along ? along.target - 1 - u : u;
    const int to_v = mirrored && !params.mirror_along ? across.target - 1 - v : v;
    Out* to = out + to_u * params.out_along + to_v * params.out_across;
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      to[c * params.out_plane] =
          from_float<Out>(__fadd_rn(__fmul_rn(Pixels::value(totals[r][c]), params.scale[c]), params.shift[c]));
  }
}

template <class Pixels, class Out, int kRows>
Status launch_resize(const ResizeCall& call, Params params) {
  params.tiles_along = static_cast<int>(ceil_div(params.along.target, kLanesAlong));
  const int64_t tiles = params.tiles_along * ceil_div(params.across.target, kWarps * kRows);
  Launch how;
  how.grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(call.views));
  how.block = dim3(kThreads);
  how.shared_bytes = sizeof(Shared<Pixels>);
  how.stream = call.stream;
  how.overlap = call.overlap;
  return launch("resizing pixels", resize_kernel<Pixels, Out, kRows>, how, params);
}

// The more of the target a tile has across, the fewer source lines are resized twice, for the tile and the one after
// it: as many as leave some tiles for every multiprocessor.
template <class Pixels, class Out>
Status choose_tile(const ResizeCall& call, const Params& params) {
  const DeviceTraits* traits = nullptr;
  DVT_RETURN_IF_ERROR(current_traits(&traits));
  const auto is_enough = [&](int rows) {
    const int64_t tiles = ceil_div(params.along.target, kLanesAlong) * ceil_div(params.across.target, kWarps * rows);
    return tiles * call.views >= 4 * traits->multiprocessors;
  };
  if (is_enough(4)) return launch_resize<Pixels, Out, 4>(call, params);
  if (is_enough(2)) return launch_resize<Pixels, Out, 2>(call, params);
  return launch_resize<Pixels, Out, 1>(call, params);
}

template <class Pixels>
Status choose_type(const ResizeCall& call, const Params& params) {
  if (call.out_type == Dtype::float32) return choose_tile<Pixels, float>(call, params);
  if (call.out_type == Dtype::float16) return choose_tile<Pixels, f16>(call, params);
  if (call.out_type == Dtype::bfloat16) return choose_tile<Pixels, bf16>(call, params);
  return invalid_argument("the result of pixels must be float32, float16 or bfloat16, got ", dtype_name(call.out_type));
}

}  // namespace

Status resize_forward(const ResizeCall& call) {
  constexpr int64_t kMaxViews = 65535;  // of a launch
  if (call.views < 1 || call.views > kMaxViews)
    return invalid_argument("a batch of images must have 1 to ", kMaxViews, " of them, got ", call.views);
  const ResizeTable &x = call.tables.x, &y = call.tables.y;
  const bool rows_first = !call.columns_first;
  Params params{};
  params.along = rows_first ? x : y;
  params.across = rows_first ? y : x;
  params.source = static_cast<const char*>(call.source);
  params.view = call.strides[0];
  params.along_stride = call.strides[rows_first ? 2 : 1];
  params.across_stride = call.strides[rows_first ? 1 : 2];
  params.channel = call.strides[3];
  params.out = call.out;
  params.out_along = rows_first ? 1 : x.target;
  params.out_across = rows_first ? x.target : 1;
  params.out_plane = static_cast<int64_t>(x.target) * y.target;
  for (int c = 0; c < kChannels; ++c) params.scale[c] = call.scale[c], params.shift[c] = call.shift[c];
  params.mirrored = call.mirrored;
  params.table_each = call.table_each;
  params.mirror_along = rows_first;
  params.lanes_are_lines = std::abs(params.across_stride) < std::abs(params.along_stride);
  if (call.kind == Dtype::float32) return choose_type<Floats>(call, params);

  params.packed_bgr = params.channel == -1;
  const char* start = params.source - (params.packed_bgr ? kChannels - 1 : 0);
  params.packed = params.along_stride == kChannels && (params.channel == 1 || params.packed_bgr) &&
                  !params.lanes_are_lines && reinterpret_cast<uintptr_t>(start) % 4 == 0 && params.view % 4 == 0 &&
                  params.across_stride % 4 == 0;
  return choose_type<Bytes>(call, params);
}

}  // namespace dvt::cuda

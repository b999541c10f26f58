// uint8 pixels are resized along rows and then along columns, with 8 bits between the two, as Pillow does it; and the
// other way round where Pillow 13 and newer do that. Only as many rows as one target row needs are kept between the
// passes, in a ring. Of float pixels the order is a matter of rounding, so it is the cheaper one: columns first.
#include "engine/pixels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/pixels_kernels.h"

namespace dvt {
namespace {

constexpr int64_t kChannels = 3;
constexpr int64_t kChunkPixels = 512;  // of a row that are brought into pairs at once: what the first-level cache holds
constexpr int64_t kRowPadding = 64;    // bytes that kernels may read after a row

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// An image as the passes see it: where it is, of which kind, and how its elements lie.
struct Source {
  const char* data;
  bool is_uint8;
  int64_t height, width;
  int64_t row, column, channel;  // strides in bytes
  // Whether the elements of a row are beside each other: pixels of 3 or 4 bytes, or the floats of one channel. Others
  // are copied, to pixels of 3 bytes.
  bool in_place;
  int64_t pixel_bytes;
  bool reversed;  // its channels: BGR is resized as it lies, and the planes of the result change places
};

// Hands out parts of the scratch; without one it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* part = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return part;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

struct Workspace {
  ResizeAxis x, y, same;  // same: every row of the target from itself
  double* weights;        // of one target pixel
  const void** rows;      // one for each row that a target row needs
  int64_t row_bytes;      // of the two that follow: a source row, and padding
  char* copies;           // ring of y.stride source rows that cannot be read in place
  char* mixed;            // kMaxLanes rows of target height and source width
  PixelPair* pairs;       // of chunk_pixels pixels of kMaxLanes rows
  uint8_t* chunk;         // those pixels, where they end with their row
  int64_t chunk_pixels;
  PixelPair* ring;  // [ring_pairs, channel, ring_stride]: pairs of rows between the two passes
  int64_t ring_pairs, ring_stride;

  PixelPair* row_pair(int64_t pair) const { return ring + pair % ring_pairs * kChannels * ring_stride; }
};

void lay_out_axis(int64_t max_source, int64_t target, Arena* arena, ResizeAxis* axis) {
  axis->target = target;
  axis->stride = resize_stride(max_source, target);
  axis->first = arena->take<int32_t>(target);
  axis->taps = arena->take<int32_t>(target);
  axis->fixed = arena->take<int32_t>(target * axis->stride);
  axis->weights = reinterpret_cast<float*>(axis->fixed);
}

Workspace lay_out(const PixelsPlan& plan, Arena* arena) {
  Workspace w{};
  lay_out_axis(plan.max_source_width, plan.width, arena, &w.x);
  lay_out_axis(plan.max_source_height, plan.height, arena, &w.y);
  lay_out_axis(plan.height, plan.height, arena, &w.same);
  w.weights = arena->take<double>(std::max({w.x.stride, w.y.stride, w.same.stride}));
  w.rows = arena->take<const void*>(w.y.stride);
  w.row_bytes = round_up(plan.max_source_width * 4 + kRowPadding, 64);
  w.copies = arena->take<char>(w.y.stride * w.row_bytes);
  w.mixed = arena->take<char>(kMaxLanes * w.row_bytes);
  w.chunk_pixels = round_up(std::max(kChunkPixels, w.x.stride + 4), 4);  // 4: chunks start at multiples of 4
  w.pairs = arena->take<PixelPair>(w.chunk_pixels / 2 * kChannels * kMaxLanes);
  w.chunk = arena->take<uint8_t>(kMaxLanes * (w.chunk_pixels * 4 + kRowPadding));
  w.ring_pairs = (w.y.stride + kMaxLanes) / 2;  // what a target row needs, and what a whole step makes
  w.ring_stride = round_up(plan.width, kMaxLanes);
  w.ring = arena->take<PixelPair>(w.ring_pairs * kChannels * w.ring_stride);
  return w;
}

// The rows of an image, or of one channel of a float one, asked for in nearly ascending order: a copy stays for as long
// as y.stride rows are copied after it.
class SourceRows {
 public:
  SourceRows(const Source& source, int64_t channel, const Workspace& w)
      : source_(source), data_(source.data + channel * source.channel), w_(w) {}

  const void* row(int64_t y) {
    if (source_.in_place) return data_ + y * source_.row;
    for (; copied_ <= y; ++copied_) copy(copied_);
    return copy_of(y);
  }

 private:
  char* copy_of(int64_t y) const { return w_.copies + y % w_.y.stride * w_.row_bytes; }
  void copy(int64_t y) const {
    const char* from = data_ + y * source_.row;
    char* to = copy_of(y);
    if (source_.is_uint8) {
      for (int64_t x = 0; x < source_.width; ++x, from += source_.column, to += kChannels)
        for (int64_t c = 0; c < kChannels; ++c) to[c] = from[c * source_.channel];
    } else {
      for (int64_t x = 0; x < source_.width; ++x, from += source_.column, to += sizeof(float))
        std::memcpy(to, from, sizeof(float));
    }
    std::memset(to, 0, kRowPadding);
  }

  const Source& source_;
  const char* data_;
  const Workspace& w_;
  int64_t copied_ = 0;
};

// Along rows: kernels.rows rows of `readable` bytes, to every second of which `out` has a place for it and the next.
void resize_rows(const PixelsKernels& kernels, const Workspace& w, const uint8_t* const* rows, int64_t readable,
                 int64_t pixel_bytes, PixelPair* const* out) {
  const ResizeAxis& axis = w.x;
  for (int64_t begin = 0, end = 0; begin < axis.target; begin = end) {
    const int64_t start = axis.first[begin] / 4 * 4;
    int64_t stop = start;
    while (end < axis.target && axis.first[end] + axis.taps[end] - start <= w.chunk_pixels) {
      stop = std::max<int64_t>(stop, axis.first[end] + axis.taps[end]);
      ++end;
    }
    const int64_t count = round_up(stop - start, 4), needed = count * pixel_bytes + 4;
    const int64_t there = std::min(needed, readable - start * pixel_bytes);
    const uint8_t* from[kMaxLanes];
    for (int64_t i = 0; i < kernels.rows; ++i) {
      from[i] = rows[i] + start * pixel_bytes;
      if (there == needed) continue;
      uint8_t* copy = w.chunk + i * (w.chunk_pixels * 4 + kRowPadding);
      std::memcpy(copy, from[i], static_cast<size_t>(there));
      std::memset(copy + there, 0, static_cast<size_t>(needed - there));
      from[i] = copy;
    }
    kernels.pair_pixels(from, pixel_bytes, count, w.pairs);
    kernels.resize_rows(w.pairs, start, axis, begin, end, out, w.ring_stride);
  }
}

void resize_uint8(const PixelsPlan& plan, const Source& source, const Workspace& w, float* out) {
  const PixelsKernels& kernels = pixels_kernels();
  const bool mix_first = pixels_columns_first(plan, source.height, source.width);
  const ResizeAxis& axis = mix_first ? w.same : w.y;
  const int64_t bytes = (source.width - 1) * source.pixel_bytes + kChannels;  // of a row: the last fourth is not ours
  SourceRows source_rows(source, 0, w);

  const auto mixed_row = [&](int64_t y, int64_t place) {
    for (int64_t tap = 0; tap < w.y.taps[y]; ++tap)  // the last one may be after the end, with weight 0
      w.rows[tap] = source_rows.row(std::min(w.y.first[y] + tap, source.height - 1));
    uint8_t* row = reinterpret_cast<uint8_t*>(w.mixed + place * w.row_bytes);
    kernels.mix_rows(reinterpret_cast<const uint8_t* const*>(w.rows), w.y, y, bytes, row);
    std::memset(row + bytes, 0, kRowPadding);
    return row;
  };
  const auto make_row_pairs = [&](int64_t y) {
    const uint8_t* rows[kMaxLanes];
    PixelPair* to[kMaxLanes / 2];
    for (int64_t i = 0; i < kernels.rows; ++i) {
      if (y + i >= axis.source) {
        rows[i] = rows[i - 1];
      } else {
        rows[i] = mix_first ? mixed_row(y + i, i) : static_cast<const uint8_t*>(source_rows.row(y + i));
      }
      to[i / 2] = w.row_pair((y + i) / 2);
    }
    const bool padded = mix_first || !source.in_place;
    resize_rows(kernels, w, rows, padded ? bytes + kRowPadding : bytes, source.pixel_bytes, to);
  };

  // Vectors of columns end after the target: there is 0, for nothing to depend on what the scratch held.
  for (int64_t row = 0; row < w.ring_pairs * kChannels; ++row)
    std::fill(w.ring + row * w.ring_stride + plan.width, w.ring + (row + 1) * w.ring_stride, 0);
  int64_t made = 0;  // rows, of the first pass
  for (int64_t y = 0; y < plan.height; ++y) {
    const int64_t first = axis.first[y], taps = axis.taps[y];
    for (; made < first + taps; made += kernels.rows) make_row_pairs(made);
    for (int64_t c = 0; c < kChannels; ++c) {
      for (int64_t pair = 0; pair < taps / 2; ++pair) w.rows[pair] = w.row_pair(first / 2 + pair) + c * w.ring_stride;
      const int64_t plane = source.reversed ? kChannels - 1 - c : c;
      kernels.resize_columns(reinterpret_cast<const PixelPair* const*>(w.rows), axis, y, plan.width, plan.scale[plane],
                             plan.shift[plane], out + (plane * plan.height + y) * plan.width);
    }
  }
}

void resize_float(const PixelsPlan& plan, const Source& source, const Workspace& w, float* out) {
  const PixelsKernels& kernels = pixels_kernels();
  float* mixed = reinterpret_cast<float*>(w.mixed);
  for (int64_t c = 0; c < kChannels; ++c) {
    SourceRows source_rows(source, c, w);
    for (int64_t y = 0; y < plan.height; ++y, out += plan.width) {
      for (int64_t tap = 0; tap < w.y.taps[y]; ++tap) w.rows[tap] = source_rows.row(w.y.first[y] + tap);
      kernels.mix_rows_float(reinterpret_cast<const float* const*>(w.rows), w.y, y, source.width, mixed);
      std::memset(mixed + source.width, 0, kRowPadding);
      kernels.resize_row_float(mixed, w.x, 255 * plan.scale[c], plan.shift[c], out);
    }
  }
}

// Whether the bytes between the first and the last element can be counted: those of memory always can. The stride of
// an axis of one element means nothing, and may be anything.
bool is_addressable(const TensorView& image) {
  double reach = 0;
  for (int axis = 0; axis < image.rank; ++axis)
    if (image.shape[axis] > 1)
      reach += static_cast<double>(image.shape[axis] - 1) * std::fabs(static_cast<double>(image.strides[axis]));
  return reach * static_cast<double>(size_of(image.dtype)) < 0x1p62;
}

Status check(const PixelsPlan& plan, const TensorView& image, const void* scratch, const float* out, Source* source) {
  const bool is_uint8 = image.dtype == Dtype::uint8;
  if (!is_uint8 && image.dtype != Dtype::float32)
    return invalid_argument("an image must be uint8 or float32, got ", dtype_name(image.dtype));
  const char* wanted = is_uint8 ? "[H, W, 3] where it is uint8" : "[3, H, W] where it is float32";
  if (image.rank != 3) return invalid_argument("an image must have shape ", wanted, ", got ", image.rank, " axes");
  const int rows = is_uint8 ? 0 : 1, channels = is_uint8 ? 2 : 0;
  const int64_t height = image.shape[rows], width = image.shape[rows + 1];
  if (image.shape[channels] != kChannels || height < 1 || width < 1)
    return invalid_argument("an image must have shape ", wanted, ", got [", image.shape[0], ", ", image.shape[1], ", ",
                            image.shape[2], "]");
  if (height > plan.max_source_height || width > plan.max_source_width)
    return invalid_argument("an image must have at most ", plan.max_source_height, " x ", plan.max_source_width,
                            " pixels, the max_source that the session was made for, got ", height, " x ", width);
  if (!image.data) return invalid_argument("an image must have data, got null");
  if (!is_addressable(image)) return invalid_argument("an image must have strides within memory");
  if (!scratch || reinterpret_cast<uintptr_t>(scratch) % 64 != 0)
    return invalid_argument("the scratch of pixels must be aligned to 64 bytes");
  if (!out) return invalid_argument("the result of pixels must have data, got null");

  const int64_t element = size_of(image.dtype);
  const auto stride_of = [&](int axis) { return image.shape[axis] > 1 ? image.strides[axis] * element : 0; };
  *source = Source{static_cast<const char*>(image.data),
                   is_uint8,
                   height,
                   width,
                   stride_of(rows),
                   stride_of(rows + 1),
                   stride_of(channels),
                   false,
                   kChannels,
                   false};
  if (!is_uint8) {
    source->in_place = source->column == element;
  } else if ((source->column == 3 || source->column == 4) && std::abs(source->channel) == 1) {
    source->in_place = true;
    source->pixel_bytes = source->column;
    source->reversed = source->channel < 0;
    if (source->reversed) source->data -= kChannels - 1;
  }
  return Status();
}

}  // namespace

Status check_pixels_plan(const PixelsPlan& plan) {
  const auto check_size = [](const char* what, int64_t height, int64_t width) {
    if (height >= 1 && width >= 1 && height <= kMaxPixelsSide && width <= kMaxPixelsSide) return Status();
    return invalid_argument(what, " must be from 1 to ", kMaxPixelsSide, " pixels a side, got ", height, " x ", width);
  };
  DVT_RETURN_IF_ERROR(check_size("the image size", plan.height, plan.width));
  DVT_RETURN_IF_ERROR(check_size("the largest source", plan.max_source_height, plan.max_source_width));
  for (int64_t c = 0; c < kChannels; ++c)
    if (!std::isfinite(255 * plan.scale[c]) || !std::isfinite(plan.shift[c]))
      return invalid_argument("scale and shift of pixels must be finite, got ", plan.scale[c], " and ", plan.shift[c]);
  return Status();
}

size_t pixels_scratch_bytes(const PixelsPlan& plan) {
  Arena arena(nullptr);
  lay_out(plan, &arena);
  return arena.used();
}

Status prepare_pixels(const PixelsPlan& plan, const TensorView& image, void* scratch, float* out) noexcept try {
  Source source{};
  DVT_RETURN_IF_ERROR(check_pixels_plan(plan));
  DVT_RETURN_IF_ERROR(check(plan, image, scratch, out, &source));
  Arena arena(scratch);
  Workspace w = lay_out(plan, &arena);
  fill_axis(source.width, source.is_uint8, w.weights, &w.x);
  fill_axis(source.height, source.is_uint8, w.weights, &w.y);
  fill_axis(plan.height, source.is_uint8, w.weights, &w.same);
  (source.is_uint8 ? resize_uint8 : resize_float)(plan, source, w, out);
  return Status();
} catch (...) {
  return Status(StatusCode::out_of_memory, std::string());  // for the text of an error
}

}  // namespace dvt

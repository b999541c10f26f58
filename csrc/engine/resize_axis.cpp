#include "engine/resize_axis.h"

#include <algorithm>
#include <cmath>

namespace dvt {
namespace {

constexpr double kSupport = 2;  // of the bicubic kernel

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// How many source pixels a target pixel spans: what the kernel is stretched by, at least 1.
double stretch(int64_t source, int64_t target) {
  return std::max(static_cast<double>(source) / static_cast<double>(target), 1.0);
}

// The cubic convolution kernel of Keys with a = -1/2. Written so that it rounds as Pillow's does.
double bicubic(double x) {
  x = std::fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0;
}

// The pixels [begin, end) that target pixel i sees, and their weights. Every operation is in the order in which Pillow
// does it, so that the weights are the same to the last bit (where the compiler fuses none, as on x86-64's baseline).
void find_weights(const ResizeAxis& axis, int64_t i, double* weights, int64_t* begin, int64_t* end) {
  const double scale = static_cast<double>(axis.source) / static_cast<double>(axis.target);
  const double inverse = 1 / stretch(axis.source, axis.target);
  const double support = kSupport * stretch(axis.source, axis.target);
  const double center = (static_cast<double>(i) + 0.5) * scale;
  *begin = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
  *end = std::min(static_cast<int64_t>(center + support + 0.5), axis.source);
  double total = 0;
  for (int64_t x = *begin; x < *end; ++x) {
    const double weight = bicubic((static_cast<double>(x) - center + 0.5) * inverse);
    weights[x - *begin] = weight;
    total += weight;
  }
  for (int64_t x = *begin; x < *end; ++x) weights[x - *begin] /= total;
}

int32_t to_fixed(double weight) {
  return static_cast<int32_t>(weight * (1 << kFractionBits) + (weight < 0 ? -0.5 : 0.5));
}

// Writes an int16 to the half of an element where bits are still 0: the low one or the high one.
void put_half(int32_t value, bool high, int32_t* element) {
  const uint32_t bits = static_cast<uint32_t>(value) & 0xffffu;
  *element = static_cast<int32_t>(static_cast<uint32_t>(*element) | (high ? bits << 16 : bits));
}

}  // namespace

int64_t resize_stride(int64_t max_source, int64_t target) {
  // Pixels that are touched by a window of twice the support; and two for windows that start and end at even pixels.
  const int64_t window = static_cast<int64_t>(std::ceil(kSupport * stretch(max_source, target))) * 2 + 1;
  return round_up(std::min(window, max_source) + 2, kMaxLanes);
}

void fill_axis(int64_t source, bool fixed, double* scratch, ResizeAxis* axis) {
  axis->source = source;
  for (int64_t i = 0; i < axis->target; ++i) {
    int64_t begin = 0, end = 0;
    find_weights(*axis, i, scratch, &begin, &end);
    const int64_t window = begin;
    const auto weight_at = [&](int64_t x) { return scratch[x - window]; };
    // Weights that are 0 at the ends only cost time: all but one where nothing is resized.
    const auto is_zero = [&](int64_t x) { return fixed ? to_fixed(weight_at(x)) == 0 : weight_at(x) == 0; };
    while (end > begin + 1 && is_zero(end - 1)) --end;
    while (begin + 1 < end && is_zero(begin)) ++begin;
    const int64_t first = fixed ? begin / 2 * 2 : begin;
    axis->first[i] = static_cast<int32_t>(first);
    axis->taps[i] = static_cast<int32_t>(fixed ? round_up(end - first, 2) : end - first);
    if (fixed) {
      int32_t* row = axis->fixed + i * axis->stride;
      std::fill(row, row + axis->stride, 0);
      for (int64_t x = begin; x < end; ++x) {
        const int32_t weight = to_fixed(weight_at(x));
        int32_t* pair = row + (x - first) / 2 * 2;
        put_half(weight >> kLowBits, x % 2 != 0, &pair[0]);
        put_half(weight & ((1 << kLowBits) - 1), x % 2 != 0, &pair[1]);
      }
    } else {
      float* row = axis->weights + i * axis->stride;
      std::fill(row, row + axis->stride, 0.0f);
      for (int64_t x = begin; x < end; ++x) row[x - first] = static_cast<float>(weight_at(x));
    }
  }
}

}  // namespace dvt

#include "engine/resample.h"

#include <algorithm>
#include <cmath>

namespace dvt {
namespace {

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

struct Taps {
  int64_t first;
  std::vector<double> weights;
};

std::vector<Taps> taps_of(int64_t from, int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to), filter = std::max(scale, 1.0);
  std::vector<Taps> all;
  for (int64_t i = 0; i < to; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale, support = 2 * filter;
    const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
    const int64_t end = std::min<int64_t>(from, static_cast<int64_t>(center + support + 0.5));
    Taps taps{first, {}};
    double total = 0;
    for (int64_t j = first; j < end; ++j) {
      taps.weights.push_back(cubic((static_cast<double>(j) - center + 0.5) / filter));
      total += taps.weights.back();
    }
    for (double& w : taps.weights) w /= total;
    all.push_back(std::move(taps));
  }
  return all;
}

}  // namespace

std::vector<float> resample_bicubic(const std::vector<float>& maps, int64_t channels, std::array<int64_t, 2> from,
                                    std::array<int64_t, 2> to) {
  if (from == to) return maps;
  const auto rows = taps_of(from[0], to[0]), columns = taps_of(from[1], to[1]);
  std::vector<double> wide(static_cast<size_t>(from[0] * to[1] * channels), 0.0);
  for (int64_t y = 0; y < from[0]; ++y)
    for (int64_t x = 0; x < to[1]; ++x)
      for (size_t j = 0; j < columns[static_cast<size_t>(x)].weights.size(); ++j) {
        const Taps& taps = columns[static_cast<size_t>(x)];
        const float* in = maps.data() + (y * from[1] + taps.first + static_cast<int64_t>(j)) * channels;
        double* sum = wide.data() + (y * to[1] + x) * channels;
        for (int64_t c = 0; c < channels; ++c) sum[c] += taps.weights[j] * in[c];
      }
  std::vector<float> out(static_cast<size_t>(to[0] * to[1] * channels));
  std::vector<double> sum(static_cast<size_t>(channels));
  for (int64_t y = 0; y < to[0]; ++y)
    for (int64_t x = 0; x < to[1]; ++x) {
      std::fill(sum.begin(), sum.end(), 0.0);
      const Taps& taps = rows[static_cast<size_t>(y)];
      for (size_t j = 0; j < taps.weights.size(); ++j) {
        const double* in = wide.data() + ((taps.first + static_cast<int64_t>(j)) * to[1] + x) * channels;
        for (int64_t c = 0; c < channels; ++c) sum[static_cast<size_t>(c)] += taps.weights[j] * in[c];
      }
      float* to_row = out.data() + (y * to[1] + x) * channels;
      for (int64_t c = 0; c < channels; ++c) to_row[c] = static_cast<float>(sum[static_cast<size_t>(c)]);
    }
  return out;
}

}  // namespace dvt

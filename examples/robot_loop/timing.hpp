// Quantiles of times in constant memory, to half a percent, with their exact largest: counts in logarithmic bins.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>

class Times {
 public:
  void add(double seconds) {
    const double bin = std::ceil(std::log(std::max(seconds, kShortest) / kShortest) / kWidth);
    ++counts_[std::min(static_cast<std::size_t>(bin), counts_.size() - 1)];
    ++count_;
    longest_ = std::max(longest_, seconds);
  }
  // The time that a part q of all do not exceed.
  double quantile(double q) const {
    const long wanted = std::max(1L, static_cast<long>(std::ceil(q * static_cast<double>(count_))));
    long seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i)
      if ((seen += counts_[i]) >= wanted)
        return std::min(longest_, kShortest * std::exp(static_cast<double>(i) * kWidth));
    return longest_;
  }
  void print(const char* name) const {
    if (count_ == 0) return;
    std::printf("%-8s%10.3f%10.3f%10.3f%10.3f\n", name, 1e3 * quantile(0.5), 1e3 * quantile(0.99),
                1e3 * quantile(0.999), 1e3 * longest_);
  }

 private:
  static constexpr double kShortest = 1e-6, kWidth = 0.005;  // the last bin begins at 1e-6 * exp(20) s: eight minutes

  std::array<long, 4001> counts_{};
  long count_ = 0;
  double longest_ = 0;
};

// All of the time goes into the programme over columns, whose inner loop is one addition and one maximum. Positions
// have few values, and so few clumps: then the direction that cuts the position freely costs next to nothing.
#include "mic/mic.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "core/threads.h"

namespace dvt {
namespace {

// One variable: its points in ascending order, equal values in one group.
struct Axis {
  std::vector<int32_t> order, starts, group;  // starts [groups + 1] into order; group [n], of each point

  void sort(int64_t n, const double* values) {
    order.resize(static_cast<size_t>(n));
    group.resize(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return values[a] < values[b]; });
    starts.assign(1, 0);
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0 && values[order[i]] != values[order[i - 1]]) starts.push_back(static_cast<int32_t>(i));
      group[static_cast<size_t>(order[i])] = static_cast<int32_t>(starts.size()) - 1;
    }
    starts.push_back(static_cast<int32_t>(n));
  }
};

// Cuts runs of points, of which run r goes from edges[r] to edges[r + 1], into at most `parts` of equal numbers of
// points; part[r] is where run r falls. Returns the parts that there are. In integers: desired = rest / open.
int32_t equipartition(const std::vector<int32_t>& edges, int64_t parts, std::vector<int32_t>& part) {
  const size_t runs = edges.size() - 1;
  part.resize(runs);
  int64_t points = 0, rest = edges.back(), open = parts;  // points of the current part
  int32_t current = 0;
  for (size_t r = 0; r < runs; ++r) {
    const int64_t size = edges[r + 1] - edges[r];
    if (points > 0 && std::abs((points + size) * open - rest) >= std::abs(points * open - rest)) {
      ++current;
      --open;
      rest = edges.back() - edges[r];
      points = 0;
    }
    part[r] = current;
    points += size;
  }
  return current + 1;
}

// best[l] = max(best[l], before[l] + gain) for l below `count`. A maximum element by element, which compilers turn into
// vectors; they may not do so with one over many numbers, whose order they would change.
void raise_to(double* __restrict best, const double* __restrict before, double gain, int64_t count) {
  for (int64_t l = 0; l < count; ++l) {
    const double sum = before[l] + gain;
    best[l] = sum > best[l] ? sum : best[l];
  }
}

class Search {
 public:
  Search(int64_t n, const MicOptions& options, const std::vector<double>& n_log_n)
      : n_(n), clumps_(options.clumps), n_log_n_(n_log_n) {
    // n^alpha that is a whole number must not lose a cell to rounding.
    cells_ = std::max(static_cast<int64_t>(std::pow(static_cast<double>(n), options.alpha) * (1 + 1e-12)), int64_t{4});
  }

  double run(const Axis& a, const Axis& b) {
    if (a.starts.size() <= 2 || b.starts.size() <= 2) return 0;  // a constant
    return std::clamp(std::max(best_of(a, b), best_of(b, a)), 0.0, 1.0);
  }

 private:
  // Over all grids with equal rows of one variable and free columns of the other.
  double best_of(const Axis& rows_axis, const Axis& columns_axis) {
    double best = 0;
    for (int64_t y = 2; y <= cells_ / 2; ++y) {
      const int64_t x = cells_ / y;
      rows_ = equipartition(rows_axis.starts, y, row_of_group_);
      find_clumps(rows_axis, columns_axis);
      if (static_cast<int64_t>(edges_.size()) - 1 > clumps_ * x) join_clumps(clumps_ * x);
      count_rows(rows_axis, columns_axis);
      optimise(x);
      for (int64_t l = 2; l <= x; ++l)
        best = std::max(best, information_[static_cast<size_t>(l)] / std::log(static_cast<double>(std::min(l, y))));
    }
    return best;
  }

  int32_t row_of(const Axis& rows_axis, int32_t point) const {
    return row_of_group_[static_cast<size_t>(rows_axis.group[static_cast<size_t>(point)])];
  }

  // edges_: where clumps begin in the order of the columns' variable, and n.
  void find_clumps(const Axis& rows_axis, const Axis& columns_axis) {
    constexpr int32_t kMixed = -1;
    edges_.clear();
    int32_t before = kMixed;
    for (size_t g = 0; g + 1 < columns_axis.starts.size(); ++g) {
      const int32_t begin = columns_axis.starts[g], end = columns_axis.starts[g + 1];
      int32_t row = row_of(rows_axis, columns_axis.order[static_cast<size_t>(begin)]);
      for (int32_t i = begin + 1; i < end && row != kMixed; ++i)
        if (row_of(rows_axis, columns_axis.order[static_cast<size_t>(i)]) != row) row = kMixed;
      if (row == kMixed || row != before) edges_.push_back(begin);
      before = row;
    }
    edges_.push_back(static_cast<int32_t>(n_));
  }

  void join_clumps(int64_t parts) {
    equipartition(edges_, parts, part_of_clump_);
    size_t kept = 1;
    for (size_t clump = 1; clump < part_of_clump_.size(); ++clump)
      if (part_of_clump_[clump] != part_of_clump_[clump - 1]) edges_[kept++] = edges_[clump];
    edges_[kept] = edges_.back();
    edges_.resize(kept + 1);
  }

  // counts_ [rows, edges]: the points of a row before an edge.
  void count_rows(const Axis& rows_axis, const Axis& columns_axis) {
    counts_.assign(static_cast<size_t>(rows_) * edges_.size(), 0);
    for (size_t t = 1; t < edges_.size(); ++t) {
      for (int32_t row = 0; row < rows_; ++row) counts_of(row)[t] = counts_of(row)[t - 1];
      for (int32_t i = edges_[t - 1]; i < edges_[t]; ++i)
        ++counts_of(row_of(rows_axis, columns_axis.order[static_cast<size_t>(i)]))[t];
    }
  }

  // information_[l]: of the best l columns or fewer, for l to x. best_ [edges, x + 1] is F(t, l); F(0, l) = 0 for every
  // l lets fewer columns do.
  void optimise(int64_t x) {
    const int64_t last = static_cast<int64_t>(edges_.size()) - 1, width = x + 1;
    best_.assign(static_cast<size_t>((last + 1) * width), 0.0);
    gain_.resize(static_cast<size_t>(last));
    for (int64_t t = 1; t <= last; ++t) {
      find_gains(t);
      double* best = best_.data() + t * width;
      std::fill(best + 1, best + width, gain_[0]);
      for (int64_t s = 1; s < t; ++s)
        raise_to(best + 2, best_.data() + s * width + 1, gain_[static_cast<size_t>(s)], x - 1);
    }
    double entropy = n_log_n_[static_cast<size_t>(n_)];  // of the rows, times n
    for (int32_t row = 0; row < rows_; ++row) entropy -= n_log_n_[static_cast<size_t>(counts_of(row)[last])];
    information_.resize(static_cast<size_t>(width));
    for (int64_t l = 1; l <= x; ++l)
      information_[static_cast<size_t>(l)] =
          (entropy + best_[static_cast<size_t>(last * width + l)]) / static_cast<double>(n_);
  }

  // gain_[s] = g(s, t)
  void find_gains(int64_t t) {
    const double* table = n_log_n_.data();
    for (int64_t s = 0; s < t; ++s) gain_[static_cast<size_t>(s)] = -table[edges_[t] - edges_[s]];
    for (int32_t row = 0; row < rows_; ++row) {
      const int32_t* before = counts_of(row);
      for (int64_t s = 0; s < t; ++s) gain_[static_cast<size_t>(s)] += table[before[t] - before[s]];
    }
  }

  int32_t* counts_of(int32_t row) { return &counts_[static_cast<size_t>(row) * edges_.size()]; }

  int64_t n_, clumps_, cells_;
  const std::vector<double>& n_log_n_;
  int32_t rows_ = 0;
  std::vector<int32_t> row_of_group_, part_of_clump_, edges_, counts_;
  std::vector<double> best_, gain_, information_;
};

}  // namespace

Status mic(int64_t channels, int64_t n, const double* values, const double* target, const MicOptions& options,
           double* result) {
  if (n < 4 || n > INT32_MAX) return invalid_argument("n must be 4 points to ", INT32_MAX, ", got ", n);
  if (!(options.alpha > 0 && options.alpha <= 1))
    return invalid_argument("alpha must be above 0 and at most 1, got ", options.alpha);
  if (options.clumps < 1 || options.clumps > INT32_MAX)
    return invalid_argument("clumps must be 1 to ", INT32_MAX, ", got ", options.clumps);
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(target[i])) return non_finite("target holds ", target[i], " at point ", i);
  for (int64_t i = 0; i < channels * n; ++i)
    if (!std::isfinite(values[i]))
      return non_finite("values hold ", values[i], " at point ", i % n, ", channel ", i / n);

  std::vector<double> n_log_n(static_cast<size_t>(n + 1), 0.0);
  for (int64_t i = 1; i <= n; ++i) {
    const auto number = static_cast<double>(i);
    n_log_n[static_cast<size_t>(i)] = number * std::log(number);
  }
  Axis other;
  other.sort(n, target);
  parallel_for(channels, 1, [&](int64_t begin, int64_t end) {
    Axis channel;
    Search search(n, options, n_log_n);
    for (int64_t c = begin; c < end; ++c) {
      channel.sort(n, values + c * n);
      result[c] = search.run(channel, other);
    }
  });
  return Status();
}

}  // namespace dvt

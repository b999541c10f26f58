// The maximal information coefficient (MIC) of Reshef et al., "Detecting Novel Associations in Large Data Sets",
// Science 334 (2011), by the approximation of its supplement (ApproxMaxMI).
//
// A grid cuts the plane of two variables into x columns and y rows, of at most x y <= B = max(n^alpha, 4) cells. Of a
// grid, I = H(rows) - H(rows | columns) is the mutual information of where a point falls, in nats, and
//
//   MIC = max over grids of I / log min(x, y),   from 0 (constants) to 1 (a function without noise).
//
// The search over grids is not complete. One variable is cut into y rows of as equal numbers of points as its ties
// allow: in ascending order, the next value opens a new row if the current one would otherwise be farther from its
// size, which is the points not placed yet by the rows not closed yet. Of the other variable all cuts into up to
// x = floor(B / y) columns are tried, between clumps only: the longest runs of points of one row, where equal values
// of several rows are a clump of their own. More than `clumps` x clumps are first joined to that many of equal numbers
// of points, by the same rule. Then the variables swap. Cuts are found by dynamic programming: a column with n_i of its
// N points in row i adds g = sum_i n_i log n_i - N log N, and of the first t clumps
//
//   F_1(t) = g(0, t),   F_l(t) = max over s < t of F_{l-1}(s) + g(s, t),   I_l = H(rows) + F_l(all) / n.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace dvt {

struct MicOptions {
  double alpha = 0.6;   // of the bound n^alpha of cells, in (0, 1]
  int64_t clumps = 15;  // for each column, at least 1
};

// values [channels, n], target [n] -> result [channels], the MIC of each channel with the target. The same bits with
// any number of threads. Errors: options out of range, n not in 4 .. 2^31 - 1, values that are not finite.
Status mic(int64_t channels, int64_t n, const double* values, const double* target, const MicOptions& options,
           double* result);

}  // namespace dvt

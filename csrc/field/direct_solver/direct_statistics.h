// Medians, means and other numbers that the direct solver draws from rows, nodes and patches, all on the device.
//
// A median is found by its bits, eight at a time: a block counts how many of the values that agree with what is known
// so far have each next byte. Four reads of the values, no sorting, the exact element. Sums are in float64 and in a
// fixed order.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "field/direct_solver/direct_sweeps.h"

namespace dvt::cuda {

// out[column] = the element that `rank` others precede in order, of count values in[column * stride + i * step].
Status select_ranked(int64_t columns, int64_t count, int64_t stride, int64_t step, const float* in, int64_t rank,
                     float* out, cudaStream_t stream);

struct DirectScalars {        // on the device; read by the host once a pass
  float median_energy;        // of |y - F - G|^2
  float limit;                // of |y - F - G|, beyond which rows lose weight
  double moved, total;        // sums of |w - w before| and of w before
  double outliers;            // rows with less than half of their base weight
  double mean_step;           // of the smaller 95 % of F's squared steps between nodes
  float typical_deviation;    // the median over patches of |G - G0 - centre|^2, unshrunk
  float median_patch_weight;  // of D
};
// limit = threshold * sqrt(median_energy), at least 1e-30.
Status set_limit(double threshold, DirectScalars* scalars, cudaStream_t stream);

constexpr int64_t kWeightParts = 256;
// moved, total, outliers; parts [kWeightParts, 3] of scratch.
Status compare_weights(int64_t rows, const float* base, const float* before, const float* weights, double* parts,
                       DirectScalars* scalars, cudaStream_t stream);

// steps [edges] = |F_a - F_b|^2 of neighbours, and mean_step: of the smallest `counted`.
int64_t grid_edges(GridShape grid);
Status measure_steps(GridShape grid, int64_t channels, const float* nodes, int64_t counted, float* steps,
                     DirectScalars* scalars, cudaStream_t stream);

// base = 1 + min(1000, channels / (2 energy)), the cosine term's weight.
Status cosine_weights(int64_t rows, int64_t channels, const float* energy, float* base, cudaStream_t stream);
// weights = base / max(1, sqrt(max(energy, typical)) / limit)^2; typical [patches], of the row's patch.
Status outlier_weights(int64_t rows, int64_t patches, const float* base, const float* energy, const float* typical,
                       const float* limit, float* weights, cudaStream_t stream);

// energy [patches] = sum over the channels of (values - centre)^2; values [patches, channels].
Status deviation_energy(int64_t patches, int64_t channels, const float* values, const float* centre, float* energy,
                        cudaStream_t stream);
// ridge = mu / max(1, energy / limit).
Status outlying_ridge(int64_t patches, float mu, float limit, const float* energy, float* ridge, cudaStream_t stream);

// centre [channels] = mean over the nodes, pull [channels] = factor * variance + 1e-30.
Status node_statistics(int64_t nodes, int64_t channels, const float* values, double factor, float* centre, float* pull,
                       cudaStream_t stream);

// *flag |= 1 where one of the values is not finite.
Status find_non_finite(int64_t count, const float* values, uint32_t* flag, cudaStream_t stream);

// Per view of features [views, patches * channels] on the device: bad[0] = the first view with NaN or infinity, bad[1]
// = the first beyond float16's range (where it is copied); at most what they were before. copy: float16, or null.
Status inspect_views(int64_t views, int64_t size, const void* features, Dtype type, uint16_t* copy, uint32_t* bad,
                     cudaStream_t stream);

}  // namespace dvt::cuda

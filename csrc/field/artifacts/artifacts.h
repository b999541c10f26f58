// The artifact map G, [P, C]: what every view shows at a patch position, whatever the image shows there.
//
// Forward adds a row of G to each sample's prediction. The gradient of a row is the sum over the samples at its
// position; samples are first sorted by position, so each row is summed by one thread in the order of the samples: the
// same bits for any number of threads.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace dvt {

// out [N, C] += artifacts [P, C] at rows patch [N].
void artifacts_forward(const float* artifacts, const int32_t* patch, int64_t n, int64_t channels, float* out);

// d_artifacts [P, C] = sum of d_out [N, C] by patch, zero where no sample is; order [N + P + 1] is a workspace.
void artifacts_backward(const float* d_out, const int32_t* patch, int64_t n, int64_t patches, int64_t channels,
                        int32_t* order, float* d_artifacts);

void artifacts_forward_reference(const float* artifacts, const int32_t* patch, int64_t n, int64_t channels, float* out);
void artifacts_backward_reference(const float* d_out, const int32_t* patch, int64_t n, int64_t patches,
                                  int64_t channels, double* d_artifacts);

struct ArtifactsKernels {
  void (*add)(const float* x, int64_t n, float* to);  // to [n] += x [n]
};
DVT_DECLARE_KERNELS(ArtifactsKernels, artifacts_kernels)

}  // namespace dvt

// Arithmetic on the artifact map [patches, channels], number by number, of the direct solver on the device.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"

namespace dvt::cuda {

struct PatchMaps {
  int64_t patches, channels;
  const float* patch_weights;  // D
  const float* inverse;        // (D + mu)^-1/2
  const float* ridge;          // mu
};

// rhs -= D * prior
Status subtract_prior(const PatchMaps& maps, const float* prior, float* rhs, cudaStream_t stream);
// artifacts = d * (d * rhs - coupled) + prior; prior may be null
Status recover_artifacts(const PatchMaps& maps, const float* rhs, const float* coupled, const float* prior,
                         float* artifacts, cudaStream_t stream);
// field_sums = E^T F = coupled / d, of coupled = d E^T F
Status field_sums(const PatchMaps& maps, const float* coupled, float* out, cudaStream_t stream);
// artifacts = (sums - field - gain * (field - D * centre)) / D; gain may be null
Status mean_left(const PatchMaps& maps, const float* sums, const float* field, const float* gain, const float* centre,
                 float* artifacts, cudaStream_t stream);
// out = (artifacts - prior) * (1 + mu / max(D, 1e-20)); prior may be null
Status unshrunk_deviation(const PatchMaps& maps, const float* artifacts, const float* prior, float* out,
                          cudaStream_t stream);
// rhs = saved - gain * field
Status subtract_gain(const PatchMaps& maps, const float* saved, const float* gain, const float* field, float* rhs,
                     cudaStream_t stream);
// values = value
Status fill(int64_t count, float value, float* values, cudaStream_t stream);

}  // namespace dvt::cuda

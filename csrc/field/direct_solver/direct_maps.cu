#include "field/direct_solver/direct_maps.h"

#include "cuda/numeric.cuh"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256;

struct SubtractPrior {
  const float* prior;
  float* rhs;
  DVT_DEVICE void operator()(const PatchMaps& m, int64_t patch, int64_t, int64_t i) const {
    rhs[i] -= m.patch_weights[patch] * prior[i];
  }
};
struct RecoverArtifacts {
  const float* rhs;
  const float* coupled;
  const float* prior;
  float* artifacts;
  DVT_DEVICE void operator()(const PatchMaps& m, int64_t patch, int64_t, int64_t i) const {
    const float d = m.inverse[patch];
    artifacts[i] = d * (d * rhs[i] - coupled[i]) + (prior ? prior[i] : 0.0f);
  }
};
struct FieldSums {
  const float* coupled;
  float* out;
  DVT_DEVICE void operator()(const PatchMaps& m, int64_t patch, int64_t, int64_t i) const {
    const float d = m.inverse[patch];
    out[i] = d > 0 ? coupled[i] / d : 0.0f;
  }
};
struct MeanLeft {
  const float* sums;
  const float* field;
  const float* gain;
  const float* centre;
  float* artifacts;
  DVT_DEVICE void operator()(const PatchMaps& m, int64_t patch, int64_t c, int64_t i) const {
    const float weight = m.patch_weights[patch];
    float left = sums[i] - field[i];
    if (gain) left -= gain[i] * (field[i] - weight * centre[c]);
    artifacts[i] = left / weight;
  }
};
struct UnshrunkDeviation {
  const float* artifacts;
  const float* prior;
  float* out;
  DVT_DEVICE void operator()(const PatchMaps& m, int64_t patch, int64_t, int64_t i) const {
    const float unshrink = 1.0f + m.ridge[patch] / fmaxf(m.patch_weights[patch], 1e-20f);
    out[i] = (artifacts[i] - (prior ? prior[i] : 0.0f)) * unshrink;
  }
};
struct SubtractGain {
  const float* saved;
  const float* gain;
  const float* field;
  float* rhs;
  DVT_DEVICE void operator()(const PatchMaps&, int64_t, int64_t, int64_t i) const {
    rhs[i] = saved[i] - gain[i] * field[i];
  }
};

template <class Op>
__global__ void patch_map_kernel(PatchMaps maps, Op op) {
  const int64_t patch = blockIdx.x, c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (c < maps.channels) op(maps, patch, c, patch * maps.channels + c);
}
template <class Op>
Status launch_map(const char* name, const PatchMaps& maps, const Op& op, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(maps.patches), static_cast<unsigned>(ceil_div(maps.channels, kThreads)));
  return launch(name, patch_map_kernel<Op>, {grid, kThreads, 0, stream}, maps, op);
}

__global__ void fill_kernel(int64_t count, float value, float* values) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) values[i] = value;
}

}  // namespace

Status subtract_prior(const PatchMaps& maps, const float* prior, float* rhs, cudaStream_t stream) {
  return launch_map("subtraction of the prior", maps, SubtractPrior{prior, rhs}, stream);
}
Status recover_artifacts(const PatchMaps& maps, const float* rhs, const float* coupled, const float* prior,
                         float* artifacts, cudaStream_t stream) {
  return launch_map("artifacts", maps, RecoverArtifacts{rhs, coupled, prior, artifacts}, stream);
}
Status field_sums(const PatchMaps& maps, const float* coupled, float* out, cudaStream_t stream) {
  return launch_map("sums of the field", maps, FieldSums{coupled, out}, stream);
}
Status mean_left(const PatchMaps& maps, const float* sums, const float* field, const float* gain, const float* centre,
                 float* artifacts, cudaStream_t stream) {
  return launch_map("mean that the field leaves", maps, MeanLeft{sums, field, gain, centre, artifacts}, stream);
}
Status unshrunk_deviation(const PatchMaps& maps, const float* artifacts, const float* prior, float* out,
                          cudaStream_t stream) {
  return launch_map("deviations", maps, UnshrunkDeviation{artifacts, prior, out}, stream);
}
Status subtract_gain(const PatchMaps& maps, const float* saved, const float* gain, const float* field, float* rhs,
                     cudaStream_t stream) {
  return launch_map("subtraction of gains", maps, SubtractGain{saved, gain, field, rhs}, stream);
}
Status fill(int64_t count, float value, float* values, cudaStream_t stream) {
  return launch("fill", fill_kernel, {dim3(static_cast<unsigned>(ceil_div(count, kThreads))), kThreads, 0, stream},
                count, value, values);
}

}  // namespace dvt::cuda

// The gradient of a row of G is the sum over the samples at its patch. A block takes a patch and looks through all
// samples for its own: N patch numbers are 8 KB, which L1 and L2 serve, and what it finds is a bit a sample, so the sum
// runs in the order of the samples and is the same bits in every run, without a sort. Adam follows while the sum is in
// registers.
//
// Bytes a step for 1,369 patches of 768 channels: 25 MB of parameters and moments, d_base 6 MB, patch numbers 11 MB
// through L1 and L2.
#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "field/adam/adam.cuh"
#include "field/artifacts/artifacts_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kSamples = 4096;  // looked through at a time

template <bool kUpdate>
__global__ void __launch_bounds__(kMaxThreads)
    artifacts_kernel(ArtifactsCall call, const FitClock* clock, int offset, float* d_artifacts) {
  uint32_t* mine = &ptx::shared<uint32_t>();  // [kSamples / 32]: a bit for each sample at this patch
  const int32_t patch = static_cast<int32_t>(blockIdx.x);
  const int64_t at = patch * call.ld;
  const int threads = static_cast<int>(blockDim.x);
  for (int64_t c0 = 0; c0 < call.ld; c0 += 4 * threads) {
    const int64_t c = c0 + 4 * threadIdx.x;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int64_t first = 0; first < call.n; first += kSamples) {
      const int64_t left = call.n - first;
      const int count = left < kSamples ? static_cast<int>(left) : kSamples, words = (count + 31) / 32;
      if (c0 == 0 || call.n > kSamples) {  // later channels find the bits of the first
        __syncthreads();
        for (int s0 = 0; s0 < count; s0 += threads) {
          const int s = s0 + static_cast<int>(threadIdx.x);
          const uint32_t found = __ballot_sync(0xffffffffu, s < count && call.patch[first + s] == patch);
          if (ptx::lane_id() == 0 && s / 32 < words) mine[s / 32] = found;
        }
        __syncthreads();
      }
      if (c >= call.ld) continue;
      for (int w = 0; w < words; ++w)
        for (uint32_t bits = mine[w]; bits != 0; bits &= bits - 1) {
          const int64_t sample = first + 32 * w + __ffs(static_cast<int>(bits)) - 1;
          const float4 d = *reinterpret_cast<const float4*>(call.d_base + sample * call.ld + c);
          sum.x += d.x, sum.y += d.y, sum.z += d.z, sum.w += d.w;
        }
    }
    if (c >= call.ld) continue;
    if constexpr (kUpdate) {
      const AdamStep step = call.steps[clock->step + offset];
      float4 p = *reinterpret_cast<const float4*>(call.params + at + c);
      float4 m = *reinterpret_cast<const float4*>(call.exp_avg + at + c);
      float4 v = *reinterpret_cast<const float4*>(call.exp_avg_sq + at + c);
      adam_step(call.constants, step, sum.x, p.x, m.x, v.x);
      adam_step(call.constants, step, sum.y, p.y, m.y, v.y);
      adam_step(call.constants, step, sum.z, p.z, m.z, v.z);
      adam_step(call.constants, step, sum.w, p.w, m.w, v.w);
      *reinterpret_cast<float4*>(call.params + at + c) = p;
      *reinterpret_cast<float4*>(call.exp_avg + at + c) = m;
      *reinterpret_cast<float4*>(call.exp_avg_sq + at + c) = v;
    } else {
      *reinterpret_cast<float4*>(d_artifacts + at + c) = sum;
    }
  }
}

Status launch_artifacts(const ArtifactsCall& call, const FitClock* clock, int offset, float* d_artifacts,
                        cudaStream_t stream) {
  if (call.ld % 4 != 0) return invalid_argument("artifacts must have a multiple of 4 columns, got ", call.ld);
  Launch how;
  how.grid = dim3(static_cast<unsigned>(call.patches));
  // Four channels a thread, in one go where there are at most 1,024.
  how.block = dim3(static_cast<unsigned>(call.ld < 4 * kMaxThreads ? round_up(call.ld / 4, 32) : kMaxThreads));
  how.shared_bytes = kSamples / 8;
  how.stream = stream;
  return launch("artifacts", d_artifacts ? artifacts_kernel<false> : artifacts_kernel<true>, how, call, clock, offset,
                d_artifacts);
}

}  // namespace

Status artifacts_update(const ArtifactsCall& call, const FitClock* clock, int offset, cudaStream_t stream) {
  return launch_artifacts(call, clock, offset, nullptr, stream);
}

Status artifacts_backward(const ArtifactsCall& call, float* d_artifacts, cudaStream_t stream) {
  return launch_artifacts(call, nullptr, 0, d_artifacts, stream);
}

namespace {

// d_base [N, ld], patch [N] -> d_artifacts [P, ld].
Status artifacts_op(OpCall& call) {
  const OpTensor *d_base, *patch, *d_artifacts;
  DVT_RETURN_IF_ERROR(call.tensor("d_base", OpType::float32, &d_base));
  DVT_RETURN_IF_ERROR(call.tensor("patch", OpType::int32, &patch));
  DVT_RETURN_IF_ERROR(call.tensor("d_artifacts", OpType::float32, &d_artifacts));
  ArtifactsCall artifacts;
  artifacts.n = d_base->shape[0];
  artifacts.ld = d_base->shape[1];
  artifacts.patches = d_artifacts->shape[0];
  artifacts.d_base = d_base->as<float>();
  artifacts.patch = patch->as<int32_t>();
  return artifacts_backward(artifacts, d_artifacts->as<float>(), static_cast<cudaStream_t>(call.stream));
}

}  // namespace

DVT_CUDA_OP("artifacts_backward", artifacts_op)

}  // namespace dvt::cuda

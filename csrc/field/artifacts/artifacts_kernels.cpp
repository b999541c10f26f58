// Adding rows, one instruction set a compilation.
#include "core/simd.h"
#include "field/artifacts/artifacts.h"

namespace dvt {
namespace DVT_ISA {
namespace {

void add(const float* x, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(to + i) + load(x + i));
  for (; i < n; ++i) to[i] += x[i];
}

}  // namespace

const ArtifactsKernels artifacts_kernels = {add};

}  // namespace DVT_ISA
}  // namespace dvt

// Attention on float16 for heads of 32 to 128 channels.
#include "transformer/attention/attention_launch.cuh"

namespace dvt::cuda {

Status attention_float16(const AttentionCudaCall& call) { return for_head_dim<NarrowLauncher<f16>>(call); }

}  // namespace dvt::cuda

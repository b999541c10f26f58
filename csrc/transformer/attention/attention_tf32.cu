// Attention on float32, each product one of tf32, for heads of 32 to 128 channels.
#include "transformer/attention/attention_launch.cuh"

namespace dvt::cuda {

Status attention_tf32(const AttentionCudaCall& call) { return for_head_dim<WideLauncher<false>>(call); }

}  // namespace dvt::cuda

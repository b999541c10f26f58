// Which tile attention takes, for the files that instantiate the kernels of one storage type each.
//
// 16-bit heads of up to 64: blocks of 128 queries where these fill most of the device (12 heads of 1369 tokens are 132
// of them, as many as an H200 has multiprocessors), of 32 with the keys split in four where they do not. Larger heads
// have fewer rows a warp, for their sums to stay in registers; no tile takes more than the 99 KB of the smallest
// device.
#pragma once

#include "cuda/runtime.h"
#include "transformer/attention/attention.cuh"
#include "transformer/attention/attention_cuda.h"

namespace dvt::cuda {

Status attention_float16(const AttentionCudaCall& call);
Status attention_bfloat16(const AttentionCudaCall& call);
Status attention_tf32(const AttentionCudaCall& call);
Status attention_float32(const AttentionCudaCall& call);

template <class Tile>
Status launch_attention(const AttentionCudaCall& call) {
  AttentionArguments arguments;
  arguments.qkv = call.qkv;
  arguments.qkv_stride = call.qkv_stride;
  arguments.out = call.out;
  arguments.out_stride = call.out_stride;
  arguments.tokens = static_cast<int32_t>(call.tokens);
  arguments.heads = static_cast<int32_t>(call.heads);
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(call.tokens, Tile::kRows)), static_cast<unsigned>(call.heads),
                  static_cast<unsigned>(call.batch));
  how.block = dim3(Tile::kThreads);
  how.shared_bytes = Tile::kSharedBytes;
  how.stream = call.stream;
  how.overlap = call.overlap;
  return launch("attention", attention_kernel<Tile>, how, arguments);
}

template <class T, int kDim>
Status launch_narrow(const AttentionCudaCall& call) {
  if constexpr (kDim <= 64) {
    const DeviceTraits* device = nullptr;
    DVT_RETURN_IF_ERROR(current_traits(&device));
    using Wide = AttentionTile<T, false, kDim, 2, 4, 2, 64>;
    const int64_t blocks = ceil_div(call.tokens, Wide::kRows) * call.heads * call.batch;
    if (blocks * 4 >= static_cast<int64_t>(device->multiprocessors) * 3) return launch_attention<Wide>(call);
    return launch_attention<AttentionTile<T, false, kDim, 1, 2, 4, 32>>(call);
  } else {
    return launch_attention<AttentionTile<T, false, kDim, 1, 4, 2, 32>>(call);
  }
}

template <bool kThree, int kDim>
Status launch_wide(const AttentionCudaCall& call) {
  return launch_attention<AttentionTile<tf32, kThree, kDim, 1, 4, (kDim <= 64 ? 2 : 1), 32>>(call);
}

// `Launcher::template run<kDim>(call)` of the call's head_dim, which was checked.
template <class Launcher>
Status for_head_dim(const AttentionCudaCall& call) {
  switch (call.head_dim) {
    case 32: return Launcher::template run<32>(call);
    case 48: return Launcher::template run<48>(call);
    case 64: return Launcher::template run<64>(call);
    case 80: return Launcher::template run<80>(call);
    case 96: return Launcher::template run<96>(call);
    case 112: return Launcher::template run<112>(call);
    default: return Launcher::template run<128>(call);
  }
}

template <class T>
struct NarrowLauncher {
  template <int kDim>
  static Status run(const AttentionCudaCall& call) {
    return launch_narrow<T, kDim>(call);
  }
};
template <bool kThree>
struct WideLauncher {
  template <int kDim>
  static Status run(const AttentionCudaCall& call) {
    return launch_wide<kThree, kDim>(call);
  }
};

}  // namespace dvt::cuda

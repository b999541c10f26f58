// Weights on a device: what is linear around a product folded into it as on the CPU (transformer/block/block.cpp), in
// one piece of memory, immutable and shared by sessions.
//
// A product's weights are rows of input channels, [out, in_stride], with zeros after the last one. Where a head has a
// number of channels that attention does not take, it is padded with channels of weight zero in the product before it
// and after it. Of a gated product, rows of the gate and of the value alternate.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/runtime.h"
#include "engine/cuda/engine_backend.h"
#include "engine/cuda/tokens_cuda.h"
#include "engine/weights.h"

namespace dvt::cuda {

constexpr int64_t kRowPiece = 8;  // rows of products are a multiple of so many elements: 16 bytes at least

struct DeviceLinear {
  int64_t in = 0, in_stride = 0;
  int64_t out = 0;              // rows of the weights, twice as many as the product's columns where gated
  size_t weight = 0, bias = 0;  // where they are in the model's memory
};

struct DeviceNorm {
  static constexpr size_t kAbsent = static_cast<size_t>(-1);
  NormWeights::Kind kind = NormWeights::Kind::none;
  float eps = 1e-6f;
  size_t weight = kAbsent, bias = kAbsent;

  bool empty() const { return kind == NormWeights::Kind::none; }
};

struct DeviceBlockWeights {
  DeviceNorm norm1, q_norm, k_norm, attention_norm, norm2, mlp_norm;
  DeviceLinear qkv, proj, fc1, fc2;
};

struct DeviceTransformer {
  int64_t dim = 0, heads = 0, head_dim = 0, padded_dim = 0, hidden = 0;
  Activation activation = Activation::gelu;
  bool gated = false;
  std::vector<DeviceBlockWeights> blocks;
  DeviceNorm norm_pre, norm;
  std::optional<Rotary> rotary;
  std::vector<float> pos_embed;  // in main memory: sessions resample it
  std::array<int64_t, 2> pos_grid = {0, 0};
  int64_t extra_count = 0;
  size_t extra_tokens = 0;
  bool extra_first = true;

  int64_t inner() const { return heads * padded_dim; }
};

struct DevicePatchEmbed {
  std::array<int64_t, 2> patch = {16, 16}, stride = {16, 16}, image_size = {224, 224};
  std::array<double, 3> mean = {0, 0, 0}, std = {1, 1, 1};
  DeviceLinear linear;
  DeviceNorm norm;
};

struct DeviceModel {
  int device = 0;
  EngineCompute compute = EngineCompute::bfloat16;
  std::optional<DevicePatchEmbed> patch_embed;
  std::optional<DeviceTransformer> vit, denoiser;
  std::string metadata;
  DeviceMemory memory;

  int64_t dim() const { return vit ? vit->dim : denoiser->dim; }
  template <class T>
  const T* at(size_t offset) const {
    return reinterpret_cast<const T*>(static_cast<const char*>(memory.data()) + offset);
  }
  RowNorm norm(const DeviceNorm& norm) const;
};

Status make_device_model(const EngineWeights& weights, EngineCompute compute, int device,
                         std::shared_ptr<const DeviceModel>* out);

// session.cu
Status create_session(std::shared_ptr<const DeviceModel> model, const SessionOptions& options,
                      std::unique_ptr<EngineSessionCuda>* out);

}  // namespace dvt::cuda

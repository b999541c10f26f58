// The inside of a session on a device: what `create_session` plans and a run works with.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cuda/runtime.h"
#include "engine/cuda/engine_backend.h"
#include "engine/cuda/model.h"
#include "engine/pixels.h"
#include "engine/session_options.h"

namespace dvt::cuda {

// A ViT or a denoiser on one grid. Sizes are of a batch; offsets are into the workspace (x) or the session's tables.
struct DeviceStage {
  const DeviceTransformer* t = nullptr;
  int64_t batch = 1, tokens = 0, patches = 0, first_patch = 0, grid_width = 1;
  int64_t x_stride = 0;
  size_t x = 0;                            // the residual stream, float32
  size_t positions = 0, cos = 0, sin = 0;  // of these tables
  bool has_positions = false, has_rotary = false;

  int64_t rows() const { return batch * tokens; }
};

// What depends on the frame's size, in memory of the session's own.
struct SessionTables {
  std::vector<float> values;  // until they are uploaded
  DeviceBuffer<float> device;
  size_t put(const float* from, int64_t count);
  const float* at(size_t index) const { return device.data() + index; }
};

struct SessionPlan {
  std::shared_ptr<const DeviceModel> model;
  SessionModel kind;
  SessionOptions options;
  std::array<int64_t, 2> grid = {0, 0};
  bool overlap = false;  // what the device can
  std::optional<DeviceStage> vit, denoiser;
  std::optional<PixelsPlan> pixels_plan;
  SessionTables tables;
  // Places in the workspace. Rows are of products' operands: normed [rows, dim], qkv, attended, hidden.
  size_t normed = 0, qkv = 0, attended = 0, hidden = 0;
  size_t pixels = 0, pixel_tables = 0, patches = 0, embedded = 0;
  size_t workspace_bytes = 0;

  Status make();  // from model and options
  int64_t value_bytes() const { return is_narrow(model->compute) ? 2 : 4; }
};

// One run: every launch, in order.
struct FrameCall {
  const SessionPlan* plan = nullptr;
  const TensorView *input = nullptr, *output = nullptr, *raw = nullptr;  // raw may be null
  char* workspace = nullptr;
  uint32_t* non_finite = nullptr;  // on the device
  cudaStream_t stream = nullptr;
};
Status enqueue_frame(const FrameCall& call, int* launches);

}  // namespace dvt::cuda

// What a session can be and which tensors it takes: the same on every device.
#pragma once

#include <array>
#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "engine/session.h"

namespace dvt {

// What of a model decides about that.
struct SessionModel {
  bool has_vit = false, has_denoiser = false;
  int64_t dim = 0;
  std::array<int64_t, 2> patch = {16, 16}, stride = {16, 16}, image_size = {0, 0};  // with a ViT
};

// Replaces every 0 by what it stands for, finds the grid of patches, and refuses what cannot be.
Status resolve_options(const SessionModel& model, SessionOptions* options, std::array<int64_t, 2>* grid);

// Whether a run of a session with resolved options takes these; raw may be null.
Status check_tensors(const SessionModel& model, const SessionOptions& options, const TensorView& input,
                     const TensorView& output, const TensorView* raw);

// The view of image i of a batch, of rank 3.
TensorView image_of(const TensorView& view, int64_t i);

}  // namespace dvt

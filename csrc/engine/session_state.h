// The inside of a Session: what `create` plans and `run` works with.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "core/team.h"
#include "engine/model_packed.h"
#include "engine/pixels.h"
#include "engine/session.h"
#include "engine/session_options.h"

namespace dvt {

// A ViT or a denoiser on one grid: what does not change from frame to frame, and where its buffers are.
struct Stage {
  const PackedTransformer* t = nullptr;
  TokenBuffers buffers;          // without the pointers
  std::vector<float> pos_embed;  // [patches, dim], or empty
  Rotation rotation;
  int64_t chunks_an_image = 1;
  size_t x = 0, q = 0, keys[2] = {0, 0}, values[2] = {0, 0};

  TokenRange chunk(int64_t index) const {
    const int64_t part = index % chunks_an_image, begin = buffers.tokens * part / chunks_an_image;
    return {index / chunks_an_image, begin, buffers.tokens * (part + 1) / chunks_an_image - begin};
  }
  int64_t chunk_count() const { return buffers.batch * chunks_an_image; }
  int64_t rows_at_once() const { return (buffers.tokens + chunks_an_image - 1) / chunks_an_image; }
  int64_t depth() const { return static_cast<int64_t>(t->blocks.size()); }
};

struct Session::State {
  ~State() {
    if (team && !team->in_this_process()) team.release();  // there is nobody to wait for
  }

  std::shared_ptr<const Model> model;
  SessionModel kind;
  SessionOptions options;
  std::array<int64_t, 2> grid = {0, 0};
  std::optional<Stage> vit, denoiser;
  std::optional<PixelsPlan> pixels_plan;
  std::unique_ptr<Team> team;
  std::atomic<bool> busy{false};
  size_t pixels = 0, pixel_scratch = 0, pixel_scratch_bytes = 0, thread_scratch = 0, workspace_bytes = 0;
  int64_t thread_floats = 0, patch_floats = 0;
  Buffer<char> own_workspace;

  Status plan();
  Status check_isa() const;

  struct Frame;  // one run
};

}  // namespace dvt

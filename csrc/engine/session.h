// One stream of frames through a model: everything that depends on the frame's size is made here, once.
//
// `create` is the slow call: it resamples position embeddings, starts threads and finds the size of the workspace.
// `run` allocates nothing once it has run (an error's text apart), takes no lock that another thread can hold for long,
// and gives the same bits for the same input, whatever the number of threads. A session serves one caller at a time: a
// second one is refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/status.h"
#include "core/tensor.h"
#include "engine/model.h"

namespace dvt {

// What `run` is given.
enum class InputKind {
  // Pixels: uint8 [B, H, W, 3] (or [H, W, 3] where batch is 1), or float32 [B, 3, H, W] (or [3, H, W]) in [0, 1], RGB,
  // of any size up to max_source; resized (bicubic with antialias) to the session's image size and normalised.
  image = 0,
  // Floating [B, 3, H, W] (or [3, H, W]) of the session's image size, normalised as the ViT wants it.
  normalized,
  // Features, floating [B, h, w, C] (or [h, w, C]): the denoiser alone.
  features,
};

struct SessionOptions {
  InputKind input = InputKind::image;
  int64_t image_height = 0, image_width = 0;  // 0: the model's own; must fit whole patches; for image and normalized
  int64_t grid_height = 0, grid_width = 0;    // for features: required
  int64_t batch = 1;
  int64_t threads = 1;                                        // of this session, the caller's included
  int64_t max_source_height = 8192, max_source_width = 8192;  // for image
};

class Session {
 public:
  static Status create(std::shared_ptr<const Model> model, const SessionOptions& options,
                       std::unique_ptr<Session>* out);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const Model& model() const;
  const SessionOptions& options() const;  // with every 0 replaced by what it stands for
  int64_t grid_height() const;
  int64_t grid_width() const;
  static constexpr size_t kWorkspaceAlignment = 64;
  size_t workspace_bytes() const;

  // input: see InputKind. output: floating [B, h, w, C] (or [h, w, C] where batch is 1), any strides; what the last
  // stage gives. raw (may be null): the ViT's own features, of the same shape; refused where there is no ViT.
  // workspace: `workspace_bytes()` bytes, 64-byte aligned, undefined before and after; null: the session's own, which
  // the first such run allocates. Errors: invalid_argument, non_finite (the result holds NaN or infinity), busy,
  // unsupported (in a forked process). Throws OutOfMemory.
  Status run(const TensorView& input, const TensorView& output, const TensorView* raw = nullptr,
             void* workspace = nullptr, size_t workspace_bytes = 0);

 private:
  Session();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dvt

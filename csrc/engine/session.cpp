#include "engine/session.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/flush_denormals.h"
#include "engine/session_state.h"
#include "engine/tensor_io.h"

namespace dvt {
// What one run works with. Every phase is a loop over what the threads claim, and a barrier.
struct Session::State::Frame {
  State& state;
  const TensorView& input;
  const TensorView& output;
  const TensorView* raw;
  char* workspace;
  TokenBuffers vit{}, denoiser{};  // with the pointers
  std::atomic<bool> finite{true};
  std::atomic<bool> failed{false};
  Status failure{};  // of the pixels: by who set `failed`, and read after a barrier

  float* floats(size_t at) const { return reinterpret_cast<float*>(workspace + at); }

  TokenBuffers place(const Stage& stage) const {
    TokenBuffers b = stage.buffers;
    b.rotation = stage.t->rotary ? &stage.rotation : nullptr;
    b.x = floats(stage.x);
    b.q = floats(stage.q);
    for (int i = 0; i < 2; ++i) {
      b.keys[i] = floats(stage.keys[i]);
      b.values[i] = floats(stage.values[i]);
    }
    return b;
  }

  void work(int member);
  void read_pixels(int member);
  void embed(const TokenRange& range, float* patches);
  void finish_vit(const TokenRange& range);
  void add_positions(const Stage& stage, const TokenBuffers& b, int64_t image, int64_t patch) const;
  void begin_denoiser(const TokenRange& range);
  void write(const TensorView& to, int64_t image, int64_t patch, const float* row);
  template <class Begin, class End>
  void run_blocks(const Stage& stage, const TokenBuffers& b, float* scratch, const Begin& begin, const End& end);
};

void Session::State::Frame::read_pixels(int member) {
  const int64_t batch = state.options.batch, height = state.options.image_height, width = state.options.image_width;
  // With more threads than images, the others have nothing to do here, and no scratch either.
  if (member >= batch) return;
  for (int64_t i = state.team->claim(); i < batch; i = state.team->claim()) {
    float* to = floats(state.pixels) + i * 3 * height * width;
    const TensorView image = image_of(input, i);
    if (!state.pixels_plan) {
      for (int64_t c = 0; c < 3; ++c)
        for (int64_t y = 0; y < height; ++y)
          read_values(image, c * image.strides[0] + y * image.strides[1], image.strides[2], width,
                      to + (c * height + y) * width);
      continue;
    }
    Status status =
        prepare_pixels(*state.pixels_plan, image,
                       workspace + state.pixel_scratch + static_cast<size_t>(member) * state.pixel_scratch_bytes, to);
    if (!status.ok() && !failed.exchange(true)) failure = std::move(status);
  }
}

void Session::State::Frame::add_positions(const Stage& stage, const TokenBuffers& b, int64_t image,
                                          int64_t patch) const {
  if (stage.pos_embed.empty()) return;
  float* x = b.x + (image * b.tokens + b.first_patch + patch) * b.x_stride;
  const float* pos = stage.pos_embed.data() + patch * stage.t->dim;
  for (int64_t c = 0; c < stage.t->dim; ++c) x[c] += pos[c];
}

// Tokens of the ViT from pixels.
void Session::State::Frame::embed(const TokenRange& range, float* patches) {
  const PackedPatchEmbed& embed = *state.model->packed().patch_embed;
  const Stage& stage = *state.vit;
  const PackedTransformer& t = *stage.t;
  const int64_t height = state.options.image_height, width = state.options.image_width;
  const int64_t py = embed.patch[0], px = embed.patch[1], stride = row_stride(embed.linear.in);
  const float* pixels = floats(state.pixels) + range.image * 3 * height * width;
  int64_t count = 0, first = 0;  // of the patches in this range
  for (int64_t r = 0; r < range.rows; ++r) {
    const int64_t patch = range.first + r - vit.first_patch;
    if (patch < 0 || patch >= vit.patches) {
      const int64_t extra = t.extra_first ? range.first + r : patch - vit.patches;
      std::memcpy(vit.x + (range.image * vit.tokens + range.first + r) * vit.x_stride,
                  t.extra_tokens.data() + extra * t.dim, static_cast<size_t>(t.dim) * sizeof(float));
      continue;
    }
    if (count == 0) first = patch;
    const int64_t y = patch / state.grid[1] * embed.stride[0], x = patch % state.grid[1] * embed.stride[1];
    float* to = patches + count++ * stride;
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t i = 0; i < py; ++i, to += px)
        std::memcpy(to, pixels + (c * height + y + i) * width + x, static_cast<size_t>(px) * sizeof(float));
  }
  if (count > 0) {
    float* x = vit.x + (range.image * vit.tokens + vit.first_patch + first) * vit.x_stride;
    linear(whole(embed.linear, count, patches, stride, x, vit.x_stride));
    embed.norm.apply(count, t.dim, x, vit.x_stride);
    for (int64_t i = 0; i < count; ++i) add_positions(stage, vit, range.image, first + i);
  }
  t.norm_pre.apply(range.rows, t.dim, vit.x + (range.image * vit.tokens + range.first) * vit.x_stride, vit.x_stride);
}

void Session::State::Frame::write(const TensorView& to, int64_t image, int64_t patch, const float* row) {
  const TensorView one = image_of(to, image);
  const int64_t y = patch / state.grid[1], x = patch % state.grid[1];
  if (!write_values(row, one, y * one.strides[0] + x * one.strides[1], one.strides[2], one.shape[2]))
    finite.store(false, std::memory_order_relaxed);
}

// Rows of a ViT's last block: the features.
void Session::State::Frame::finish_vit(const TokenRange& range) {
  const PackedTransformer& t = *state.vit->t;
  float* x = vit.x + (range.image * vit.tokens + range.first) * vit.x_stride;
  t.norm.apply(range.rows, t.dim, x, vit.x_stride);
  for (int64_t r = 0; r < range.rows; ++r, x += vit.x_stride) {
    const int64_t patch = range.first + r - vit.first_patch;
    if (patch < 0 || patch >= vit.patches) continue;
    if (raw) write(*raw, range.image, patch, x);
    if (!state.denoiser) {
      write(output, range.image, patch, x);
      continue;
    }
    std::memcpy(denoiser.x + (range.image * denoiser.tokens + denoiser.first_patch + patch) * denoiser.x_stride, x,
                static_cast<size_t>(t.dim) * sizeof(float));
  }
}

// Tokens of the denoiser, from the ViT's features, which are there, or from the input.
void Session::State::Frame::begin_denoiser(const TokenRange& range) {
  const Stage& stage = *state.denoiser;
  const PackedTransformer& t = *stage.t;
  for (int64_t r = 0; r < range.rows; ++r) {
    const int64_t token = range.first + r, patch = token - denoiser.first_patch;
    float* x = denoiser.x + (range.image * denoiser.tokens + token) * denoiser.x_stride;
    if (patch < 0 || patch >= denoiser.patches) {
      const int64_t extra = t.extra_first ? token : patch - denoiser.patches;
      std::memcpy(x, t.extra_tokens.data() + extra * t.dim, static_cast<size_t>(t.dim) * sizeof(float));
      continue;
    }
    if (!state.vit) {
      const TensorView image = image_of(input, range.image);
      read_values(image, patch / state.grid[1] * image.strides[0] + patch % state.grid[1] * image.strides[1],
                  image.strides[2], t.dim, x);
    }
    add_positions(stage, denoiser, range.image, patch);
  }
  t.norm_pre.apply(range.rows, t.dim, denoiser.x + (range.image * denoiser.tokens + range.first) * denoiser.x_stride,
                   denoiser.x_stride);
}

// begin(range) makes a range's tokens, end(range) takes them; keys and values of two blocks exist at a time, so that
// one barrier a block is enough.
template <class Begin, class End>
void Session::State::Frame::run_blocks(const Stage& stage, const TokenBuffers& b, float* scratch, const Begin& begin,
                                       const End& end) {
  Team& team = *state.team;
  const int64_t count = stage.chunk_count(), depth = stage.depth();
  const BlockScratch block = BlockScratch::carve(*stage.t, stage.rows_at_once(), scratch);
  for (int64_t i = team.claim(); i < count; i = team.claim()) {
    const TokenRange range = stage.chunk(i);
    begin(range);
    if (depth > 0)
      block_project(*stage.t, 0, b, range, block);
    else
      end(range);
  }
  team.barrier();
  for (int64_t index = 0; index < depth; ++index) {
    for (int64_t i = team.claim(); i < count; i = team.claim()) {
      const TokenRange range = stage.chunk(i);
      block_mix(*stage.t, index, b, range, block);
      if (index + 1 < depth)
        block_project(*stage.t, index + 1, b, range, block);
      else
        end(range);
    }
    team.barrier();
  }
}

void Session::State::Frame::work(int member) {
  const FlushDenormals flush;
  float* scratch = floats(state.thread_scratch) + member * (state.thread_floats + state.patch_floats);
  float* patches = scratch + state.thread_floats;
  if (state.vit) {
    read_pixels(member);
    state.team->barrier();
    if (failed.load(std::memory_order_acquire)) return;  // of every member, since it was said before the barrier
    run_blocks(
        *state.vit, vit, scratch, [&](const TokenRange& range) { embed(range, patches); },
        [&](const TokenRange& range) { finish_vit(range); });
  }
  if (state.denoiser) {
    const PackedTransformer& t = *state.denoiser->t;
    run_blocks(
        *state.denoiser, denoiser, scratch, [&](const TokenRange& range) { begin_denoiser(range); },
        [&](const TokenRange& range) {
          float* x = denoiser.x + (range.image * denoiser.tokens + range.first) * denoiser.x_stride;
          t.norm.apply(range.rows, t.dim, x, denoiser.x_stride);
          for (int64_t r = 0; r < range.rows; ++r, x += denoiser.x_stride) {
            const int64_t patch = range.first + r - denoiser.first_patch;
            if (patch >= 0 && patch < denoiser.patches) write(output, range.image, patch, x);
          }
        });
  }
}

Session::Session() : state_(std::make_unique<State>()) {}
Session::~Session() = default;

Status Session::create(std::shared_ptr<const Model> model, const SessionOptions& options,
                       std::unique_ptr<Session>* out) {
  std::unique_ptr<Session> session(new Session());
  State& state = *session->state_;
  state.model = std::move(model);
  state.options = options;
  DVT_RETURN_IF_ERROR(state.check_isa());
  DVT_RETURN_IF_ERROR(state.plan());
  state.team = std::make_unique<Team>(static_cast<int>(state.options.threads));
  *out = std::move(session);
  return Status();
}

const Model& Session::model() const { return *state_->model; }
const SessionOptions& Session::options() const { return state_->options; }
int64_t Session::grid_height() const { return state_->grid[0]; }
int64_t Session::grid_width() const { return state_->grid[1]; }
size_t Session::workspace_bytes() const { return state_->workspace_bytes; }

Status Session::run(const TensorView& input, const TensorView& output, const TensorView* raw, void* workspace,
                    size_t workspace_bytes) {
  if (state_->busy.exchange(true, std::memory_order_acquire))
    return Status(StatusCode::busy, "this session runs on another thread: a session serves one caller at a time");
  struct Free {
    std::atomic<bool>& busy;
    ~Free() { busy.store(false, std::memory_order_release); }
  } const free{state_->busy};
  if (!state_->team->in_this_process())
    return Status(StatusCode::unsupported, "this session is of the process that was forked: make another one here");
  DVT_RETURN_IF_ERROR(state_->check_isa());
  DVT_RETURN_IF_ERROR(check_tensors(state_->kind, state_->options, input, output, raw));
  if (!workspace) {
    workspace = state_->own_workspace.at_least(static_cast<int64_t>(state_->workspace_bytes));
  } else {
    if (workspace_bytes < state_->workspace_bytes)
      return invalid_argument("the workspace has ", workspace_bytes, " bytes, and ", state_->workspace_bytes,
                              " are needed");
    if (reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment != 0)
      return invalid_argument("the workspace must be aligned to ", kWorkspaceAlignment, " bytes");
  }
  State::Frame frame{*state_, input, output, raw, static_cast<char*>(workspace)};
  if (state_->vit) frame.vit = frame.place(*state_->vit);
  if (state_->denoiser) frame.denoiser = frame.place(*state_->denoiser);
  state_->team->run([&](int member) { frame.work(member); });
  if (frame.failed) return frame.failure;
  if (!frame.finite) return non_finite("the features hold NaN or infinity");
  return Status();
}

}  // namespace dvt

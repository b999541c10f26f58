#include "engine/session.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

#include "core/flush_denormals.h"
#include "core/team.h"
#include "core/threads.h"
#include "engine/model_packed.h"
#include "engine/pixels.h"
#include "engine/resample.h"
#include "engine/tensor_io.h"

namespace dvt {
namespace {

// Tokens that a thread takes through a block at a time: enough to use each weight often, few enough that what belongs
// to them stays in the second cache.
constexpr int64_t kRowsAtOnce = 128;
constexpr int64_t kMaxSide = 1 << 15;  // pixels or patches
constexpr int64_t kMaxBatch = 1 << 12;
constexpr int64_t kMaxTokens = 1 << 20;  // of one image

// Hands out pieces of the workspace.
class Arena {
 public:
  size_t take(int64_t floats) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(floats) * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  size_t used() const { return used_; }
  void rewind(size_t to) { used_ = to; }

 private:
  size_t used_ = 0;
};

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

Stage plan_stage(const PackedTransformer& t, std::array<int64_t, 2> grid, int64_t batch, int64_t threads) {
  Stage stage;
  stage.t = &t;
  TokenBuffers& b = stage.buffers;
  b.batch = batch;
  b.patches = grid[0] * grid[1];
  b.tokens = b.patches + t.extra_count();
  b.first_patch = t.extra_first ? t.extra_count() : 0;
  b.x_stride = row_stride(t.dim);
  b.q_stride = row_stride(t.inner());
  b.shape.tokens = b.tokens;
  b.shape.head_dim = t.head_dim;
  b.shape.nr = linear_kernels().nr;
  if (!t.pos_embed.empty()) stage.pos_embed = resample_bicubic(t.pos_embed, t.dim, t.pos_grid, grid);
  if (t.rotary) stage.rotation = make_rotation(*t.rotary, t.head_dim, grid[0], grid[1]);
  // As many chunks as keep all threads busy to the end; their bounds change no bits.
  const int64_t fewest = (b.tokens + kRowsAtOnce - 1) / kRowsAtOnce;
  stage.chunks_an_image = fewest;
  while (stage.chunk_count() % threads != 0 && stage.chunks_an_image < std::min(b.tokens, fewest + threads))
    ++stage.chunks_an_image;
  return stage;
}

// The blocks of one stage need nothing of another's, so that only x outlives a stage.
void place_attention(Stage& stage, Arena& arena) {
  const TokenBuffers& b = stage.buffers;
  const int64_t heads = b.batch * stage.t->heads;
  stage.q = arena.take(b.batch * b.tokens * b.q_stride);
  for (int i = 0; i < 2; ++i) {
    stage.keys[i] = arena.take(heads * b.shape.key_floats());
    stage.values[i] = arena.take(heads * b.shape.value_floats());
  }
}

Status check_rank(const char* what, const TensorView& view, int64_t batch, const int64_t (&expected)[3],
                  const char* layout) {
  bool fits = view.rank == 4 || (view.rank == 3 && batch == 1);
  if (fits && view.rank == 4) fits = view.shape[0] == batch;
  for (int i = 0; fits && i < 3; ++i) {
    const int64_t n = view.shape[view.rank - 3 + i];
    fits = expected[i] < 0 ? n > 0 : n == expected[i];
  }
  if (fits) return Status();
  std::string want = format("[", batch), came = "[";
  for (int64_t n : expected) want += n < 0 ? std::string(", *") : format(", ", n);
  for (int i = 0; i < view.rank; ++i) came += format(i ? ", " : "", view.shape[i]);
  return invalid_argument(what, " must have shape ", want, "] (", layout, ")",
                          batch == 1 ? " or without the first" : "", ", got ", came, "]");
}

// The view of image i of a batch, of rank 3.
TensorView image_of(const TensorView& view, int64_t i) {
  if (view.rank == 3) return view;
  TensorView one = view;
  one.rank = 3;
  one.data = static_cast<char*>(view.data) + i * view.strides[0] * size_of(view.dtype);
  std::copy_n(view.shape + 1, 3, one.shape);
  std::copy_n(view.strides + 1, 3, one.strides);
  return one;
}

}  // namespace

struct Session::State {
  std::shared_ptr<const Model> model;
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
  Status check(const TensorView& input, const TensorView& output, const TensorView* raw) const;

  struct Frame;  // one run
};

Status Session::State::plan() {
  const PackedModel& packed = model->packed();
  SessionOptions& o = options;
  if (o.batch < 1 || o.batch > kMaxBatch)
    return invalid_argument("batch must be from 1 to ", kMaxBatch, ", got ", o.batch);
  if (o.threads < 1 || o.threads > kMaxThreads)
    return invalid_argument("threads must be from 1 to ", kMaxThreads, ", got ", o.threads);
  const bool features = o.input == InputKind::features;
  if (features && !packed.denoiser)
    return invalid_argument("a session on features needs a denoiser, and this engine has only a ViT");
  if (!features && !packed.vit)
    return invalid_argument("a session on images needs a ViT, and this engine has only a denoiser: give it features");
  if (features) {
    if (o.image_height != 0 || o.image_width != 0)
      return invalid_argument("a session on features takes a grid, and no image size");
    grid = {o.grid_height, o.grid_width};
    if (grid[0] < 1 || grid[1] < 1 || grid[0] > kMaxSide || grid[1] > kMaxSide)
      return invalid_argument("a session on features needs a grid from 1 to ", kMaxSide, " patches a side, got ",
                              grid[0], " x ", grid[1]);
  } else {
    const PackedPatchEmbed& embed = *packed.patch_embed;
    if (o.image_height == 0 && o.image_width == 0) {
      o.image_height = embed.image_size[0];
      o.image_width = embed.image_size[1];
    }
    const int64_t size[2] = {o.image_height, o.image_width};
    for (size_t i = 0; i < 2; ++i) {
      if (size[i] < embed.patch[i] || size[i] > kMaxSide || (size[i] - embed.patch[i]) % embed.stride[i] != 0)
        return invalid_argument("the image size must fit whole patches of ", embed.patch[i], " pixels every ",
                                embed.stride[i], ", at most ", kMaxSide, ", got ", size[0], " x ", size[1]);
      grid[i] = (size[i] - embed.patch[i]) / embed.stride[i] + 1;
    }
    if ((o.grid_height != 0 || o.grid_width != 0) && (o.grid_height != grid[0] || o.grid_width != grid[1]))
      return invalid_argument("images of ", size[0], " x ", size[1], " make a grid of ", grid[0], " x ", grid[1],
                              " patches, and ", o.grid_height, " x ", o.grid_width, " was asked for");
  }
  if (grid[0] * grid[1] > kMaxTokens)
    return invalid_argument("at most ", kMaxTokens, " patches an image, got ", grid[0], " x ", grid[1]);
  o.grid_height = grid[0];
  o.grid_width = grid[1];

  Arena arena;
  if (!features) vit = plan_stage(*packed.vit, grid, o.batch, o.threads);
  if (packed.denoiser) denoiser = plan_stage(*packed.denoiser, grid, o.batch, o.threads);
  int64_t block_floats = 0;
  for (Stage* stage : {vit ? &*vit : nullptr, denoiser ? &*denoiser : nullptr}) {
    if (!stage) continue;
    const TokenBuffers& b = stage->buffers;
    stage->x = arena.take(b.batch * b.tokens * b.x_stride);
    block_floats = std::max(block_floats, BlockScratch::floats(*stage->t, stage->rows_at_once()));
  }
  const size_t shared = arena.used();
  size_t end = shared;
  for (Stage* stage : {vit ? &*vit : nullptr, denoiser ? &*denoiser : nullptr}) {
    if (!stage) continue;
    arena.rewind(shared);
    place_attention(*stage, arena);
    end = std::max(end, arena.used());
  }
  arena.rewind(end);
  if (!features) {
    const PackedPatchEmbed& embed = *packed.patch_embed;
    const int64_t height = o.image_height, width = o.image_width;
    pixels = arena.take(o.batch * 3 * height * width);
    patch_floats = vit->rows_at_once() * row_stride(embed.linear.in);
    if (o.input == InputKind::image) {
      if (o.max_source_height < 1 || o.max_source_height > kMaxSide || o.max_source_width < 1 ||
          o.max_source_width > kMaxSide)
        return invalid_argument("the largest source must be from 1 to ", kMaxSide, " pixels a side, got ",
                                o.max_source_height, " x ", o.max_source_width);
      PixelsPlan& plan = pixels_plan.emplace();
      plan.height = height;
      plan.width = width;
      plan.max_source_height = o.max_source_height;
      plan.max_source_width = o.max_source_width;
      for (size_t c = 0; c < 3; ++c) {
        plan.scale[c] = static_cast<float>(1 / (255.0 * embed.std[c]));
        plan.shift[c] = static_cast<float>(-static_cast<double>(embed.mean[c]) / embed.std[c]);
      }
      pixel_scratch_bytes = (pixels_scratch_bytes(plan) + kAlignment - 1) / kAlignment * kAlignment;
      pixel_scratch =
          arena.take(std::min(o.threads, o.batch) * static_cast<int64_t>(pixel_scratch_bytes / sizeof(float)));
    }
  }
  thread_floats = (block_floats + 15) / 16 * 16;
  patch_floats = (patch_floats + 15) / 16 * 16;
  thread_scratch = arena.take(o.threads * (thread_floats + patch_floats));
  workspace_bytes = arena.used();
  return Status();
}

// Panels are of one instruction set's shape.
Status Session::State::check_isa() const {
  const Isa packed = model->packed().isa;
  if (packed == active_isa()) return Status();
  return invalid_argument("the weights are packed for ", isa_name(packed), ", and ", isa_name(active_isa()),
                          " is in use now: load the model again");
}

Status Session::State::check(const TensorView& input, const TensorView& output, const TensorView* raw) const {
  const int64_t batch = options.batch, dim = model->dim();
  if (!input.data) return invalid_argument("input is null");
  switch (options.input) {
    case InputKind::image:
      if (input.dtype == Dtype::uint8) {
        DVT_RETURN_IF_ERROR(check_rank("uint8 images", input, batch, {-1, -1, 3}, "batch, height, width, RGB"));
      } else if (input.dtype == Dtype::float32) {
        DVT_RETURN_IF_ERROR(check_rank("float32 images", input, batch, {3, -1, -1}, "batch, RGB, height, width"));
      } else {
        return invalid_argument("images must be uint8 or float32, got ", dtype_name(input.dtype));
      }
      break;
    case InputKind::normalized:
      if (!is_floating(input.dtype))
        return invalid_argument("normalized images must be floats, got ", dtype_name(input.dtype));
      DVT_RETURN_IF_ERROR(check_rank("normalized images", input, batch, {3, options.image_height, options.image_width},
                                     "batch, RGB, height, width"));
      break;
    case InputKind::features:
      if (!is_floating(input.dtype)) return invalid_argument("features must be floats, got ", dtype_name(input.dtype));
      DVT_RETURN_IF_ERROR(
          check_rank("features", input, batch, {grid[0], grid[1], dim}, "batch, rows, columns, channels"));
      break;
  }
  for (const TensorView* view : {&output, raw}) {
    if (!view) continue;
    const char* name = view == raw ? "raw" : "output";
    if (!view->data) return invalid_argument(name, " is null");
    if (!is_floating(view->dtype))
      return invalid_argument(name, " must be of a floating type, got ", dtype_name(view->dtype));
    DVT_RETURN_IF_ERROR(check_rank(name, *view, batch, {grid[0], grid[1], dim}, "batch, rows, columns, channels"));
  }
  if (raw && !vit) return invalid_argument("raw features are those of a ViT, and this session runs none");
  return Status();
}

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
  Status failure{};  // of the pixels; written once, before `failed`

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
                    size_t workspace_bytes) noexcept {
  if (state_->busy.exchange(true, std::memory_order_acquire))
    return Status(StatusCode::busy, "this session runs on another thread: a session serves one caller at a time");
  struct Free {
    std::atomic<bool>& busy;
    ~Free() { busy.store(false, std::memory_order_release); }
  } const free{state_->busy};
  try {
    DVT_RETURN_IF_ERROR(state_->check_isa());
    DVT_RETURN_IF_ERROR(state_->check(input, output, raw));
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
  } catch (const OutOfMemory& error) {
    return Status(StatusCode::out_of_memory, error.what());
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::out_of_memory, "not enough memory");
  } catch (const std::exception& error) {
    return Status(StatusCode::internal, error.what());
  }
}

}  // namespace dvt

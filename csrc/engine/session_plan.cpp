// What a session can be, how its buffers lie in the workspace, and which tensors it takes.
#include <algorithm>

#include "core/threads.h"
#include "engine/resample.h"
#include "engine/session_state.h"
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

}  // namespace

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

}  // namespace dvt

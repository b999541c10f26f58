// How the buffers of a session lie in the workspace.
#include <algorithm>

#include "engine/resample.h"
#include "engine/session_state.h"

namespace dvt {
namespace {

// Tokens that a thread takes through a block at a time: enough to use each weight often, few enough that what belongs
// to them stays in the second cache.
constexpr int64_t kRowsAtOnce = 128;

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

}  // namespace

Status Session::State::plan() {
  kind.has_vit = model->has_vit();
  kind.has_denoiser = model->has_denoiser();
  kind.dim = model->dim();
  if (const auto& embed = model->packed().patch_embed) {
    kind.patch = embed->patch;
    kind.stride = embed->stride;
    kind.image_size = embed->image_size;
  }
  DVT_RETURN_IF_ERROR(resolve_options(kind, &options, &grid));
  const PackedModel& packed = model->packed();
  const SessionOptions& o = options;
  const bool features = o.input == InputKind::features;

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

}  // namespace dvt

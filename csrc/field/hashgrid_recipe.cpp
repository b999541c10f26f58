#include "field/hashgrid_recipe.h"

#include <algorithm>
#include <cmath>

#include "core/random.h"
#include "core/threads.h"

namespace dvt {
namespace {

// With these no product of sizes wraps.
constexpr int64_t kMaxPatches = 1 << 24, kMaxWidth = 1 << 20;

Status check(const HashgridOptions& o, const HashgridSize& p) {
  if (p.views < 1 || p.height < 1 || p.width < 1 || p.channels < 1)
    return invalid_argument("features must have at least one view, patch and channel");
  if (o.steps < 1) return invalid_argument("steps must be at least 1, got ", o.steps);
  if (o.batch < 1 || o.batch > (1 << 20)) return invalid_argument("batch must be 1 to 1048576, got ", o.batch);
  if (o.steps > (1 << 30)) return invalid_argument("steps must be at most 1073741824, got ", o.steps);
  if (p.height > kMaxPatches / p.width || p.channels > kMaxWidth)
    return invalid_argument("features must have at most ", kMaxPatches, " patches a view and ", kMaxWidth,
                            " channels, got ", p.height, " x ", p.width, " and ", p.channels);
  if (o.hidden_dim < 0 || o.hidden_dim > kMaxWidth)
    return invalid_argument("hidden_dim must be 0 (the default) to ", kMaxWidth, ", got ", o.hidden_dim);
  if (o.residual_dim < 0 || o.residual_dim > kMaxWidth)
    return invalid_argument("residual_dim must be 0 (the default) to ", kMaxWidth, ", got ", o.residual_dim);
  const auto positive = [](double x) { return x > 0 && std::isfinite(x); };
  const auto at_least_zero = [](double x) { return x >= 0 && std::isfinite(x); };
  if (!positive(o.lr)) return invalid_argument("lr must be positive, got ", o.lr);
  if (!at_least_zero(o.lr_final)) return invalid_argument("lr_final must be at least 0, got ", o.lr_final);
  if (!(o.warmup >= 0 && o.warmup <= 1)) return invalid_argument("warmup must be in [0, 1], got ", o.warmup);
  for (double beta : {o.adam.beta1, o.adam.beta2})
    if (!(beta >= 0 && beta < 1)) return invalid_argument("betas must be in [0, 1), got ", beta);
  // torch's lerp takes another form from a weight of a half on; the exact replay follows the small one.
  if (!(1 - o.adam.beta1 < 0.5)) return invalid_argument("betas[0] must be above 0.5, got ", o.adam.beta1);
  if (!at_least_zero(o.adam.eps)) return invalid_argument("eps must be at least 0, got ", o.adam.eps);
  if (!at_least_zero(o.adam.weight_decay))
    return invalid_argument("weight_decay must be at least 0, got ", o.adam.weight_decay);
  if (!at_least_zero(o.loss.residual_mse) || !at_least_zero(o.loss.residual_l1))
    return invalid_argument("residual weights must be at least 0, got ", o.loss.residual_mse, " and ",
                            o.loss.residual_l1);
  if (!positive(o.loss.scale)) return invalid_argument("loss_scale must be positive, got ", o.loss.scale);
  return Status();
}

// As torch.nn.Linear: weights and biases uniform in +-1 / sqrt(inputs).
void initialise_mlp(const MlpShape& shape, uint64_t seed, HashgridStream stream, float* params) {
  Random random(seed, stream);
  for (int i = 0; i < shape.n_layers; ++i) {
    const float bound = 1.0f / std::sqrt(static_cast<float>(shape.widths[i]));
    const int64_t count = (shape.widths[i] + 1) * shape.widths[i + 1];
    for (int64_t k = 0; k < count; ++k) *params++ = random.uniform(-bound, bound);
  }
}

// Calls write(random, i) for i in [0, n), each with the numbers that a loop would give it, `draws` apiece.
template <class Write>
void for_each_random(uint64_t seed, HashgridStream stream, int64_t n, uint64_t draws, Write&& write) {
  parallel_for(n, 1 << 14, [&](int64_t begin, int64_t end) {
    Random random(seed, stream);
    random.skip(static_cast<uint64_t>(begin) * draws);
    for (int64_t i = begin; i < end; ++i) write(random, i);
  });
}

}  // namespace

double hashgrid_learning_rate(const HashgridOptions& options, int64_t step) {
  const int64_t warm = static_cast<int64_t>(std::llround(options.warmup * static_cast<double>(options.steps)));
  if (step < warm) return options.lr * static_cast<double>(step + 1) / static_cast<double>(warm);
  const double done = static_cast<double>(step - warm) / static_cast<double>(options.steps - warm);
  return options.lr_final + (options.lr - options.lr_final) * 0.5 * (1 + std::cos(3.14159265358979323846 * done));
}

Status HashgridRecipe::make(const HashgridOptions& options, const HashgridSize& size, HashgridRecipe* recipe) {
  DVT_RETURN_IF_ERROR(check(options, size));
  recipe->options = options;
  recipe->size = size;
  DVT_RETURN_IF_ERROR(make_hash_grid(options.grid, &recipe->grid));
  const int64_t c = size.channels;
  const int64_t hidden = options.hidden_dim ? options.hidden_dim : std::max<int64_t>(1, c / 2);
  const int64_t narrow = options.residual_dim ? options.residual_dim : std::max<int64_t>(1, c / 4);
  recipe->field_mlp = {2, {recipe->grid.n_outputs(), hidden, c}};
  recipe->residual_mlp = {3, {c, narrow, narrow, c}};
  return Status();
}

std::vector<AdamStep> HashgridRecipe::adam_steps() const {
  std::vector<AdamStep> table;
  table.reserve(static_cast<size_t>(options.steps));
  for (int64_t s = 0; s < options.steps; ++s)
    table.push_back(adam_step_factors(options.adam, hashgrid_learning_rate(options, s), s + 1));
  return table;
}

AdamStep HashgridRecipe::residual_adam_step(int64_t step) const {
  return adam_step_factors(options.adam, hashgrid_learning_rate(options, step), step - first_phase() + 1);
}

void HashgridRecipe::initialise(const HashgridParameters& p) const {
  for_each_random(options.seed, kGrid, grid.n_params(), 1,
                  [&](Random& random, int64_t i) { p.grid[i] = random.uniform(-1e-4f, 1e-4f); });
  for_each_random(options.seed, kArtifacts, size.patches() * size.channels, 2,
                  [&](Random& random, int64_t i) { p.artifacts[i] = 0.02f * random.normal(); });
  initialise_mlp(field_mlp, options.seed, kField, p.field);
  initialise_mlp(residual_mlp, options.seed, kResidual, p.residual);
}

Status HashgridRecipe::non_finite_feature(int64_t bad) const {
  const int64_t c = size.channels, patch = bad / c, w = size.width, h = size.height;
  return non_finite("features have a NaN or infinity at view ", patch / (w * h), ", row ", patch / w % h, ", column ",
                    patch % w, ", channel ", bad % c);
}

}  // namespace dvt

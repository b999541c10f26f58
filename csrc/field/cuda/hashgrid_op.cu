// The fit by name, for tests: a whole run, and the gradients of one batch, from and to arrays.
#include <algorithm>
#include <vector>

#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "field/cuda/hashgrid_backend.h"

namespace dvt::cuda {
namespace {

// features [V, H, W, C] as words["dtype"], coords [V, H, W, 2]; numbers: the options by their names in Python.
Status make_fitter(OpCall& call, std::unique_ptr<HashgridFitterCuda>* out) {
  const OpTensor *features, *coords;
  const std::string kind = call.word("dtype", "float32");
  const OpType type = kind == "float16" ? OpType::float16 : kind == "bfloat16" ? OpType::bfloat16 : OpType::float32;
  DVT_RETURN_IF_ERROR(call.tensor("features", type, &features));
  DVT_RETURN_IF_ERROR(call.tensor("coords", OpType::float32, &coords));
  HashgridCudaOptions options;
  HashgridOptions& recipe = options.recipe;
  recipe.steps = static_cast<int64_t>(call.number("steps"));
  recipe.batch = static_cast<int64_t>(call.number("batch"));
  recipe.seed = static_cast<uint64_t>(call.number("seed"));
  recipe.grid.n_levels = static_cast<int>(call.number("n_levels", 16));
  recipe.grid.n_features_per_level = static_cast<int>(call.number("n_features_per_level", 8));
  recipe.grid.log2_hashmap_size = static_cast<int>(call.number("log2_hashmap_size", 20));
  recipe.grid.base_resolution = static_cast<int>(call.number("base_resolution", 16));
  recipe.grid.per_level_scale = static_cast<float>(call.number("per_level_scale"));
  recipe.lr = call.number("lr", 0.01);
  recipe.lr_final = call.number("lr_final", 0.001);
  recipe.warmup = call.number("warmup", 0.1);
  recipe.loss.scale = static_cast<float>(call.number("loss_scale", 1024));
  options.compute = call.word("compute", "tf32");
  options.deterministic = call.number("deterministic") != 0;
  options.graph_steps = static_cast<int64_t>(call.number("graph_steps", 20));
  options.sweep_steps = static_cast<int64_t>(call.number("sweep_steps", 64));
  HashgridCudaProblem problem;
  problem.features = features->data;
  problem.dtype = type == OpType::float16    ? Dtype::float16
                  : type == OpType::bfloat16 ? Dtype::bfloat16
                                             : Dtype::float32;
  problem.coords = coords->as<float>();
  problem.features_on_device = problem.coords_on_device = true;
  problem.size = {features->shape[0], features->shape[1], features->shape[2], features->shape[3]};
  problem.device = call.device;
  problem.stream = call.stream;
  return make_hashgrid_fitter(options, problem, out);
}

// The groups of parameters, or their gradients, in main memory, and the op's tensors of their names with a prefix.
struct Groups {
  std::vector<float> grid, field, artifacts, residual;

  explicit Groups(const HashgridRecipe& recipe)
      : grid(static_cast<size_t>(recipe.grid.n_params())),
        field(static_cast<size_t>(recipe.field_mlp.n_params())),
        artifacts(static_cast<size_t>(recipe.size.patches() * recipe.size.channels)),
        residual(static_cast<size_t>(recipe.residual_mlp.n_params())) {}
  HashgridParameters pointers() { return {grid.data(), field.data(), artifacts.data(), residual.data()}; }
  Status copy(const OpCall& call, const std::string& prefix, bool to_device) {
    for (auto [name, values] : {std::pair("grid", &grid), std::pair("field", &field),
                                std::pair("artifacts", &artifacts), std::pair("residual", &residual)}) {
      const OpTensor* tensor;
      DVT_RETURN_IF_ERROR(call.tensor(prefix + name, OpType::float32, &tensor));
      if (tensor->count() != static_cast<int64_t>(values->size()))
        return invalid_argument(prefix, name, " must have ", values->size(), " floats, got ", tensor->count());
      const size_t bytes = values->size() * sizeof(float);
      DVT_CUDA(to_device ? cudaMemcpy(tensor->data, values->data(), bytes, cudaMemcpyHostToDevice)
                         : cudaMemcpy(values->data(), tensor->data, bytes, cudaMemcpyDeviceToHost),
               "copying parameters");
    }
    return Status();
  }
};

Status set_initial(OpCall& call, HashgridFitterCuda& fitter) {
  if (!call.has("initial_grid")) return Status();
  Groups initial(fitter.recipe());
  DVT_RETURN_IF_ERROR(initial.copy(call, "initial_", false));
  return fitter.set_parameters(initial.pointers());
}

Status given_samples(OpCall& call, std::vector<int64_t>* samples) {
  if (!call.has("samples")) return Status();
  const OpTensor* tensor;
  DVT_RETURN_IF_ERROR(call.tensor("samples", OpType::int64, &tensor));
  samples->resize(static_cast<size_t>(tensor->count()));
  return check(cudaMemcpy(samples->data(), tensor->data, samples->size() * sizeof(int64_t), cudaMemcpyDeviceToHost),
               "copying samples");
}

// -> history [count], grid, field, artifacts, residual, and the maps semantics, artifact_map, residual_map [H, W, C].
// numbers: count, steps to run, in `parts` runs; fits: so many of these at once, of which the last is looked at.
Status fit_op(OpCall& call) {
  std::vector<std::unique_ptr<HashgridFitterCuda>> fitters(static_cast<size_t>(std::max(1.0, call.number("fits", 1))));
  for (auto& fitter : fitters) {
    DVT_RETURN_IF_ERROR(make_fitter(call, &fitter));
    DVT_RETURN_IF_ERROR(set_initial(call, *fitter));
  }
  HashgridFitterCuda& fitter = *fitters.back();
  std::vector<int64_t> samples;
  DVT_RETURN_IF_ERROR(given_samples(call, &samples));
  const int64_t count = static_cast<int64_t>(call.number("count")),
                parts = static_cast<int64_t>(call.number("parts", 1));
  const int64_t stop = static_cast<int64_t>(call.number("stop", -1));
  if (fitters.size() > 1) {
    std::vector<HashgridFitterCuda*> all;
    for (auto& each : fitters) all.push_back(each.get());
    DVT_RETURN_IF_ERROR(run_hashgrid_fitters(all, count, 10, nullptr));
  } else {
    for (int64_t p = 0; p < parts; ++p)
      DVT_RETURN_IF_ERROR(
          fitter.run(count * (p + 1) / parts - count * p / parts,
                     samples.empty() ? nullptr : samples.data() + count * p / parts * fitter.recipe().options.batch, 1,
                     [&](int64_t step, int64_t, double) { return stop < 0 || step < stop; }));
  }
  const OpTensor *history, *maps[3];
  DVT_RETURN_IF_ERROR(call.tensor("history", OpType::float32, &history));
  DVT_CUDA(cudaMemcpy(history->data, fitter.loss_history().data(),
                      std::min<size_t>(fitter.loss_history().size(), static_cast<size_t>(history->count())) * 4,
                      cudaMemcpyHostToDevice),
           "copying losses");
  Groups found(fitter.recipe());
  DVT_RETURN_IF_ERROR(fitter.parameters(found.pointers()));
  DVT_RETURN_IF_ERROR(found.copy(call, "", true));
  DVT_RETURN_IF_ERROR(call.tensor("semantics", OpType::float32, &maps[0]));
  DVT_RETURN_IF_ERROR(call.tensor("artifact_map", OpType::float32, &maps[1]));
  DVT_RETURN_IF_ERROR(call.tensor("residual_map", OpType::float32, &maps[2]));
  return fitter.decomposition(maps[0]->as<float>(), maps[1]->as<float>(), maps[2]->as<float>(), true);
}

// samples [batch] -> losses [4] and the gradients grid, field, artifacts, residual, at the initial parameters.
Status gradients_op(OpCall& call) {
  std::unique_ptr<HashgridFitterCuda> fitter;
  DVT_RETURN_IF_ERROR(make_fitter(call, &fitter));
  DVT_RETURN_IF_ERROR(set_initial(call, *fitter));
  std::vector<int64_t> samples;
  DVT_RETURN_IF_ERROR(given_samples(call, &samples));
  Groups grads(fitter->recipe());
  Losses losses;
  DVT_RETURN_IF_ERROR(fitter->gradients(samples.data(), call.number("second_phase") != 0, grads.pointers(), &losses));
  DVT_RETURN_IF_ERROR(grads.copy(call, "", true));
  const OpTensor* out;
  DVT_RETURN_IF_ERROR(call.tensor("losses", OpType::float64, &out));
  const double values[] = {losses.mse, losses.cosine, losses.residual_mse, losses.residual_l1};
  return check(cudaMemcpy(out->data, values, sizeof values, cudaMemcpyHostToDevice), "copying losses");
}

}  // namespace

DVT_CUDA_OP("hashgrid_fit", fit_op)
DVT_CUDA_OP("hashgrid_gradients", gradients_op)

}  // namespace dvt::cuda

// The direct solver on a device by name, for tests (cuda/op_registry.h): whole solves, and the parts that have a
// contract of their own.
#include <algorithm>
#include <string>

#include "cuda/op_registry.h"
#include "field/direct_solver/direct_backend.h"
#include "field/direct_solver/direct_device_rows.h"
#include "field/direct_solver/direct_device_system.h"
#include "field/direct_solver/direct_statistics.h"

namespace dvt::cuda {
namespace {

struct Views {
  const OpTensor* features;
  const OpTensor* coords;
  DirectSetup setup;
  Dtype type;
  int64_t views;
};

// features [views, patches, channels] of any type, coords [views, patches, 2]; numbers ny, nx.
Status read_views(OpCall& call, Views* v) {
  const auto found = call.tensors.find("features");
  if (found == call.tensors.end() || found->second.shape.size() != 3)
    return invalid_argument("features must have shape [views, patches, channels]");
  v->features = &found->second;
  DVT_RETURN_IF_ERROR(call.tensor("coords", OpType::float32, &v->coords));
  v->type = v->features->type == OpType::float32    ? Dtype::float32
            : v->features->type == OpType::float16  ? Dtype::float16
            : v->features->type == OpType::bfloat16 ? Dtype::bfloat16
                                                    : Dtype::uint8;
  v->views = v->features->shape[0];
  v->setup.grid = {static_cast<int64_t>(call.number("ny")), static_cast<int64_t>(call.number("nx"))};
  v->setup.patches = v->features->shape[1];
  v->setup.channels = v->features->shape[2];
  v->setup.device = call.device;
  const std::string keep = call.word("keep", "borrow");
  v->setup.keep = keep == "borrow" ? Keep::borrow : keep == "half" ? Keep::half : Keep::nothing;
  v->setup.cosine = call.number("cosine") != 0;
  v->setup.solves_artifacts = call.number("solves_artifacts", 1) != 0;
  return Status();
}

Status make_solver(OpCall& call, Views* v, std::unique_ptr<DirectSolverCuda>* solver) {
  DVT_RETURN_IF_ERROR(read_views(call, v));
  DVT_RETURN_IF_ERROR(create_direct_solver(v->setup, solver));
  const int64_t batch = static_cast<int64_t>(call.number("batch", static_cast<double>(v->views)));
  for (int round = 0; round <= call.number("again"); ++round) {  // again: the same once more, after a reset
    (*solver)->reset();
    for (int64_t first = 0; first < v->views; first += batch) {
      const int64_t n = std::min(batch, v->views - first), rows = first * v->setup.patches;
      const char* features = v->features->as<char>() + rows * v->setup.channels * size_of(v->type);
      DVT_RETURN_IF_ERROR((*solver)->add(n, features, v->type, v->coords->as<float>() + 2 * rows, true, call.stream));
    }
  }
  return Status();
}

Status direct_solve_op(OpCall& call) {
  Views v;
  std::unique_ptr<DirectSolverCuda> solver;
  DVT_RETURN_IF_ERROR(make_solver(call, &v, &solver));
  const OpTensor *nodes, *artifacts, *report, *prior = nullptr;
  DVT_RETURN_IF_ERROR(call.tensor("nodes", OpType::float32, &nodes));
  DVT_RETURN_IF_ERROR(call.tensor("artifacts", OpType::float32, &artifacts));
  DVT_RETURN_IF_ERROR(call.tensor("report", OpType::float64, &report));
  if (call.has("prior")) DVT_RETURN_IF_ERROR(call.tensor("prior", OpType::float32, &prior));
  DirectOptions options;
  options.smoothness = call.number("smoothness", -1);
  options.automatic_smoothness = options.smoothness == -1;
  options.artifact_ridge = call.number("artifact_ridge", -1);
  options.automatic_ridge = options.artifact_ridge == -1;
  if (options.automatic_ridge) options.artifact_ridge = 0;
  options.passes = static_cast<int>(call.number("passes", 4));
  options.residual = static_cast<int>(call.number("residual"));
  options.outlier_threshold = call.number("outlier_threshold", 1.5);
  options.fix_artifacts = call.number("fix_artifacts") != 0;
  const std::string method = call.word("method", "auto");
  options.method = method == "schur" ? DirectMethod::schur
                   : method == "pcg" ? DirectMethod::pcg
                                     : DirectMethod::automatic;
  options.tolerance = call.number("tolerance", 1e-5);
  options.max_iterations = static_cast<int>(call.number("max_iterations", 200));
  DirectReport r;
  DVT_RETURN_IF_ERROR(solver->solve(options, prior ? prior->as<float>() : nullptr, nodes->as<float>(),
                                    artifacts->as<float>(), &r, call.stream));
  const double numbers[6] = {static_cast<double>(r.passes),
                             static_cast<double>(r.iterations),
                             r.smoothness,
                             r.artifact_ridge,
                             r.median_residual,
                             r.outlier_share};
  DVT_CUDA(cudaMemcpyAsync(report->data, numbers, sizeof(numbers), cudaMemcpyHostToDevice,
                           static_cast<cudaStream_t>(call.stream)),
           "copying a report");
  return check(cudaStreamSynchronize(static_cast<cudaStream_t>(call.stream)), "copying a report");
}
DVT_CUDA_OP("direct_solve", direct_solve_op)

Status direct_average_op(OpCall& call) {
  Views v;
  std::unique_ptr<DirectSolverCuda> solver;
  DVT_RETURN_IF_ERROR(make_solver(call, &v, &solver));
  const OpTensor *nodes, *artifacts;
  DVT_RETURN_IF_ERROR(call.tensor("nodes", OpType::float32, &nodes));
  DVT_RETURN_IF_ERROR(call.tensor("artifacts", OpType::float32, &artifacts));
  return solver->average(nodes->as<float>(), artifacts->as<float>(), call.stream);
}
DVT_CUDA_OP("direct_average", direct_average_op)

// The rows by cell and by patch: by_cell and by_patch [rows], cell_start [cells + 1].
Status direct_rows_op(OpCall& call) {
  Views v;
  DVT_RETURN_IF_ERROR(read_views(call, &v));
  const auto stream = static_cast<cudaStream_t>(call.stream);
  const OpTensor *by_cell, *by_patch, *start;
  DVT_RETURN_IF_ERROR(call.tensor("by_cell", OpType::uint32, &by_cell));
  DVT_RETURN_IF_ERROR(call.tensor("by_patch", OpType::uint32, &by_patch));
  DVT_RETURN_IF_ERROR(call.tensor("cell_start", OpType::uint32, &start));
  Arena arena;
  DeviceRows rows(v.setup, arena);
  DVT_RETURN_IF_ERROR(rows.place(v.views, v.coords->as<float>(), true, stream));
  rows.commit(v.views, nullptr);
  DVT_RETURN_IF_ERROR(rows.sort_all(true, stream));
  const auto copy = [&](const OpTensor* to, const uint32_t* from) {
    return check(
        cudaMemcpyAsync(to->data, from, static_cast<size_t>(to->count()) * 4, cudaMemcpyDeviceToDevice, stream),
        "copying rows");
  };
  DVT_RETURN_IF_ERROR(copy(by_cell, rows.list().row));
  DVT_RETURN_IF_ERROR(copy(start, rows.list().cell_start));
  DVT_RETURN_IF_ERROR(copy(by_patch, rows.patch_rows()));
  return check(cudaStreamSynchronize(stream), "sorting rows");
}
DVT_CUDA_OP("direct_rows", direct_rows_op)

// The matrix for weights [rows] and ridge [patches]: product [patches, channels] = E^T values, for values [nodes,
// channels]; patch_weights [patches].
Status direct_matrix_op(OpCall& call) {
  Views v;
  DVT_RETURN_IF_ERROR(read_views(call, &v));
  const auto stream = static_cast<cudaStream_t>(call.stream);
  const OpTensor *weights, *ridge, *values, *product, *patch_weights, *stencil;
  DVT_RETURN_IF_ERROR(call.tensor("weights", OpType::float32, &weights));
  DVT_RETURN_IF_ERROR(call.tensor("ridge", OpType::float32, &ridge));
  DVT_RETURN_IF_ERROR(call.tensor("values", OpType::float32, &values));
  DVT_RETURN_IF_ERROR(call.tensor("product", OpType::float32, &product));
  DVT_RETURN_IF_ERROR(call.tensor("patch_weights", OpType::float32, &patch_weights));
  DVT_RETURN_IF_ERROR(call.tensor("stencil", OpType::float64, &stencil));
  Arena arena;
  DeviceRows rows(v.setup, arena);
  DVT_RETURN_IF_ERROR(rows.place(v.views, v.coords->as<float>(), true, stream));
  rows.commit(v.views, nullptr);
  DVT_RETURN_IF_ERROR(rows.sort_all(true, stream));
  DeviceSystem system;
  DVT_RETURN_IF_ERROR(system.allocate(rows.shape(v.views), true, arena, stream));
  const auto copy = [&](void* to, const void* from, int64_t bytes) {
    return check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
                 "copying a matrix");
  };
  DVT_RETURN_IF_ERROR(copy(system.ridge(), ridge->data, ridge->count() * 4));
  DVT_RETURN_IF_ERROR(system.assemble(rows.shape(v.views), rows.places(), rows.list(), rows.patch_rows(),
                                      weights->as<float>(), call.number("smoothness"), stream));
  DVT_RETURN_IF_ERROR(system.multiply_field(values->as<float>(), product->as<float>(), stream));
  DVT_RETURN_IF_ERROR(copy(patch_weights->data, system.patch_weights(), patch_weights->count() * 4));
  DVT_RETURN_IF_ERROR(copy(stencil->data, system.stencil_rows(), stencil->count() * 8));
  return check(cudaStreamSynchronize(stream), "assembling a matrix");
}
DVT_CUDA_OP("direct_matrix", direct_matrix_op)

// values [columns, count], or across [count, columns], -> out [columns]: the one of `rank`.
Status select_ranked_op(OpCall& call) {
  const OpTensor *values, *out;
  DVT_RETURN_IF_ERROR(call.tensor("values", OpType::float32, &values));
  DVT_RETURN_IF_ERROR(call.tensor("out", OpType::float32, &out));
  const bool across = call.number("across") != 0;
  const int64_t columns = values->shape[across], count = values->shape[!across];
  return select_ranked(columns, count, across ? 1 : count, across ? columns : 1, values->as<float>(),
                       static_cast<int64_t>(call.number("rank")), out->as<float>(),
                       static_cast<cudaStream_t>(call.stream));
}
DVT_CUDA_OP("select_ranked", select_ranked_op)

// nodes [ny, nx, channels], coords [count, 2] or [height, width, 2], out [..., channels].
Status field_op(OpCall& call) {
  const OpTensor *nodes, *coords, *out;
  DVT_RETURN_IF_ERROR(call.tensor("nodes", OpType::float32, &nodes));
  DVT_RETURN_IF_ERROR(call.tensor("coords", OpType::float32, &coords));
  DVT_RETURN_IF_ERROR(call.tensor("out", OpType::float32, &out));
  const GridShape grid{nodes->shape[0], nodes->shape[1]};
  const int64_t channels = nodes->shape[2];
  if (call.word("what") == "query")
    return query_field(call.device, grid, channels, nodes->as<float>(), coords->count() / 2, coords->as<float>(),
                       out->as<float>(), call.stream);
  return field_patch_means(call.device, grid, channels, nodes->as<float>(), coords->shape[0], coords->shape[1],
                           coords->as<float>(), out->as<float>(), call.stream);
}
DVT_CUDA_OP("bilinear_field", field_op)

// artifacts [patches, channels] and nodes [count, channels] are changed.
Status gauge_op(OpCall& call) {
  const OpTensor *artifacts, *nodes, *workspace;
  DVT_RETURN_IF_ERROR(call.tensor("artifacts", OpType::float32, &artifacts));
  DVT_RETURN_IF_ERROR(call.tensor("nodes", OpType::float32, &nodes));
  DVT_RETURN_IF_ERROR(call.tensor("workspace", OpType::uint8, &workspace));
  const int64_t patches = artifacts->shape[0], channels = artifacts->shape[1];
  if (static_cast<size_t>(workspace->count()) < gauge_workspace_bytes(patches, channels))
    return invalid_argument("workspace must have ", gauge_workspace_bytes(patches, channels), " bytes, got ",
                            workspace->count());
  return apply_gauge(call.device, patches, channels, artifacts->as<float>(), nodes->shape[0], nodes->as<float>(),
                     workspace->data, call.stream);
}
DVT_CUDA_OP("gauge", gauge_op)

}  // namespace
}  // namespace dvt::cuda

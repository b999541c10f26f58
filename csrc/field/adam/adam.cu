// Adam on arrays: dense, and lazily on listed entries. The fit's own kernels have their step of Adam where the gradient
// is made (lazy_grid.cu, mlp.cu, artifacts.cu); these serve tests and anything else that holds gradients.
//
// Dense: 28 bytes a parameter, so the memory's speed. Lazy: a thread a float, neighbours of an entry in one warp.
#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "field/adam/adam.cuh"
#include "field/adam/adam_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void adam_update_kernel(AdamConstants constants, AdamStep step, int64_t n, const float* grads, float* params,
                                   float* exp_avg, float* exp_avg_sq) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  float p = params[i], m = exp_avg[i], v = exp_avg_sq[i];
  adam_step(constants, step, grads[i], p, m, v);
  params[i] = p;
  exp_avg[i] = m;
  exp_avg_sq[i] = v;
}

__global__ void lazy_adam_kernel(AdamConstants constants, const AdamStep* steps, AdamTable table,
                                 const uint32_t* entries, int64_t count, const float* grads, int32_t step) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t place = i / table.width;
  const int f = static_cast<int>(i % table.width);
  const bool active = place < count;
  const int64_t entry = active ? entries[place] : 0;
  const int32_t last = active ? table.last_step[entry] : step;
  if (active) {
    const int64_t at = entry * table.width + f;
    float p[1] = {table.params[at]}, m[1] = {table.exp_avg[at]}, v[1] = {table.exp_avg_sq[at]};
    adam_replay<1>(constants, steps, last, grads ? step - 1 : step, p, m, v);
    if (grads) adam_step(constants, steps[step - 1], grads[i], p[0], m[0], v[0]);
    table.params[at] = p[0];
    table.exp_avg[at] = m[0];
    table.exp_avg_sq[at] = v[0];
  }
  __syncwarp();  // all of the entry's threads have read its last step: a width divides a warp
  if (active && f == 0) table.last_step[entry] = step;
}

}  // namespace

Status adam_update(const AdamConstants& constants, AdamStep step, int64_t n, const float* grads, float* params,
                   float* exp_avg, float* exp_avg_sq, cudaStream_t stream) {
  if (n <= 0) return Status();
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(n, kThreads)));
  how.block = dim3(kThreads);
  how.stream = stream;
  return launch("adam_update", adam_update_kernel, how, constants, step, n, grads, params, exp_avg, exp_avg_sq);
}

Status lazy_adam_update(const AdamConstants& constants, const AdamStep* steps, const AdamTable& table,
                        const uint32_t* entries, int64_t count, const float* grads, int32_t step, cudaStream_t stream) {
  if (count <= 0) return Status();
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(count * table.width, kThreads)));
  how.block = dim3(kThreads);
  how.stream = stream;
  return launch("lazy_adam_update", lazy_adam_kernel, how, constants, steps, table, entries, count, grads, step);
}

namespace {

AdamConstants constants_of(const OpCall& call) {
  return AdamConstants({call.number("beta1", 0.9), call.number("beta2", 0.99), call.number("eps", 1e-15),
                        call.number("weight_decay", 1e-5)});
}

// params, exp_avg, exp_avg_sq [n] in place, grads [n]; numbers lr, t.
Status adam_op(OpCall& call) {
  const OpTensor *params, *exp_avg, *exp_avg_sq, *grads;
  DVT_RETURN_IF_ERROR(call.tensor("params", OpType::float32, &params));
  DVT_RETURN_IF_ERROR(call.tensor("exp_avg", OpType::float32, &exp_avg));
  DVT_RETURN_IF_ERROR(call.tensor("exp_avg_sq", OpType::float32, &exp_avg_sq));
  DVT_RETURN_IF_ERROR(call.tensor("grads", OpType::float32, &grads));
  const AdamOptions options{call.number("beta1", 0.9), call.number("beta2", 0.99), 0, 0};
  const AdamStep step = adam_step_factors(options, call.number("lr"), static_cast<int64_t>(call.number("t")));
  return adam_update(constants_of(call), step, params->count(), grads->as<float>(), params->as<float>(),
                     exp_avg->as<float>(), exp_avg_sq->as<float>(), static_cast<cudaStream_t>(call.stream));
}

// params, exp_avg, exp_avg_sq [entries, width] and last_step [entries] in place; entries [count], grads [count, width]
// or none; steps [n, 2]: the factors; number step.
Status lazy_adam_op(OpCall& call) {
  const OpTensor *params, *exp_avg, *exp_avg_sq, *last_step, *entries, *steps, *grads = nullptr;
  DVT_RETURN_IF_ERROR(call.tensor("params", OpType::float32, &params));
  DVT_RETURN_IF_ERROR(call.tensor("exp_avg", OpType::float32, &exp_avg));
  DVT_RETURN_IF_ERROR(call.tensor("exp_avg_sq", OpType::float32, &exp_avg_sq));
  DVT_RETURN_IF_ERROR(call.tensor("last_step", OpType::int32, &last_step));
  DVT_RETURN_IF_ERROR(call.tensor("entries", OpType::uint32, &entries));
  DVT_RETURN_IF_ERROR(call.tensor("steps", OpType::float32, &steps));
  if (call.has("grads")) DVT_RETURN_IF_ERROR(call.tensor("grads", OpType::float32, &grads));
  const AdamTable table{last_step->count(),      static_cast<int>(params->shape.back()),
                        params->as<float>(),     exp_avg->as<float>(),
                        exp_avg_sq->as<float>(), last_step->as<int32_t>()};
  return lazy_adam_update(constants_of(call), steps->as<AdamStep>(), table, entries->as<uint32_t>(), entries->count(),
                          grads ? grads->as<float>() : nullptr, static_cast<int32_t>(call.number("step")),
                          static_cast<cudaStream_t>(call.stream));
}

__global__ void ordinary_arithmetic_kernel(const float* a, const float* y, int64_t n, float* roots, float* quotients) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  roots[i] = ptx::sqrt_ordinary(y[i]);
  quotients[i] = ptx::divide_ordinary(a[i], y[i]);
}

// a, y [n] -> roots of y and quotients a / y: what replay takes for correctly rounded.
Status ordinary_arithmetic_op(OpCall& call) {
  const OpTensor *a, *y, *roots, *quotients;
  DVT_RETURN_IF_ERROR(call.tensor("a", OpType::float32, &a));
  DVT_RETURN_IF_ERROR(call.tensor("y", OpType::float32, &y));
  DVT_RETURN_IF_ERROR(call.tensor("roots", OpType::float32, &roots));
  DVT_RETURN_IF_ERROR(call.tensor("quotients", OpType::float32, &quotients));
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(a->count(), kThreads)));
  how.block = dim3(kThreads);
  how.stream = static_cast<cudaStream_t>(call.stream);
  return launch("ordinary_arithmetic", ordinary_arithmetic_kernel, how, a->as<float>(), y->as<float>(), a->count(),
                roots->as<float>(), quotients->as<float>());
}

}  // namespace

DVT_CUDA_OP("ordinary_arithmetic", ordinary_arithmetic_op)
DVT_CUDA_OP("adam_update", adam_op)
DVT_CUDA_OP("lazy_adam_update", lazy_adam_op)

}  // namespace dvt::cuda

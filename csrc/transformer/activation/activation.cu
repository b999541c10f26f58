// y = activation(x), an element a thread: for tests, which measure what the epilogues of linear.cuh compute.
#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "transformer/activation/activation.cuh"
#include "transformer/activation/activation_cuda.h"

namespace dvt::cuda {

Status parse_activation(const std::string& name, Activation* activation) {
  const std::pair<const char*, Activation> names[] = {{"gelu", Activation::gelu},
                                                      {"gelu_tanh", Activation::gelu_tanh},
                                                      {"quick_gelu", Activation::quick_gelu},
                                                      {"silu", Activation::silu},
                                                      {"relu", Activation::relu}};
  for (const auto& [known, value] : names)
    if (name == known) {
      *activation = value;
      return Status();
    }
  return invalid_argument("activation must be gelu, gelu_tanh, quick_gelu, silu or relu, got '", name, "'");
}

namespace {

constexpr int kThreads = 256;

template <Accuracy kAccuracy>
__global__ void __launch_bounds__(kThreads)
    activation_kernel(bool is_gelu, Logistic l, const float* x, int64_t n, float* y) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) y[i] = activate<kAccuracy>(is_gelu, l, x[i]);
}

// x -> y, float32; words: activation; numbers: narrow.
Status activation_op(OpCall& op) {
  const OpTensor *x = nullptr, *y = nullptr;
  DVT_RETURN_IF_ERROR(op.tensor("x", OpType::float32, &x));
  DVT_RETURN_IF_ERROR(op.tensor("y", OpType::float32, &y));
  Activation activation = Activation::gelu;
  DVT_RETURN_IF_ERROR(parse_activation(op.word("activation"), &activation));
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(x->count(), kThreads)));
  how.block = dim3(kThreads);
  how.stream = static_cast<cudaStream_t>(op.stream);
  const bool is_gelu = activation == Activation::gelu;
  const auto kernel =
      op.number("narrow") != 0 ? activation_kernel<Accuracy::narrow> : activation_kernel<Accuracy::full>;
  return launch("activation", kernel, how, is_gelu, logistic_of(activation), x->as<const float>(), x->count(),
                y->as<float>());
}
DVT_CUDA_OP("activation", activation_op)

}  // namespace
}  // namespace dvt::cuda

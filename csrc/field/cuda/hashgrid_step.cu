// A step of a fit as kernels on branching streams, and graphs of steps; hashgrid_fitter.h draws it.
//
// Launches of a step: 18 in the first phase, 32 in the second, of which 8 follow one another on the longest road.
#include "field/cuda/hashgrid_fitter.h"

namespace dvt::cuda {
namespace {

__global__ void advance_clock_kernel(FitClock* clock, int32_t steps) {
  clock->step += steps;
  clock->epoch += static_cast<uint32_t>(steps);
}

}  // namespace

// The forward pass of the batch of step + offset, on the main stream; h's beside F's.
Status HashgridFit::enqueue_forward(int offset, bool second_phase) {
  cudaStream_t main = stream_.main();
  const int64_t n = batch_.n;
  cudaStream_t side = nullptr;
  if (second_phase) {
    DVT_RETURN_IF_ERROR(stream_.branch(main, &side, true));
    DVT_RETURN_IF_ERROR(gather_batch(bank_, batch_, offset, operand_, raw_, ld(), side));
    DVT_RETURN_IF_ERROR(mlp_layer_forward(residual_, 0, raw_, n, residual_hidden_[0], side));
    DVT_RETURN_IF_ERROR(mlp_layer_forward(residual_, 1, residual_hidden_[0], n, residual_hidden_[1], side));
    DVT_RETURN_IF_ERROR(mlp_layer_forward(residual_, 2, residual_hidden_[1], n, h_, side));
  }
  DVT_RETURN_IF_ERROR(lazy_grid_forward(lazy_, bank_, batch_, offset, operand_, encoding_, field_.layout.ld(0),
                                        const_cast<int64_t*>(loss_.rows), const_cast<int32_t*>(loss_.patch), main));
  DVT_RETURN_IF_ERROR(mlp_layer_forward(field_, 0, encoding_, n, hidden_, main));
  DVT_RETURN_IF_ERROR(mlp_layer_forward(field_, 1, hidden_, n, base_, main));
  return second_phase ? stream_.after(main, side) : Status();
}

// Adam's step of a layer, on branches of their own from where `from` is.
Status HashgridFit::enqueue_update(const MlpCuda& mlp, int layer, const void* d_y, const void* x, int offset,
                                   cudaStream_t from) {
  cudaStream_t weights, bias;
  DVT_RETURN_IF_ERROR(stream_.branch(from, &weights));
  DVT_RETURN_IF_ERROR(mlp_weights_update(mlp, layer, d_y, x, batch_.n, clock_, offset, weights));
  DVT_RETURN_IF_ERROR(stream_.branch(from, &bias));
  return mlp_bias_update(mlp, layer, d_y, batch_.n, clock_, offset, bias);
}

Status HashgridFit::enqueue_step(int offset, bool second_phase, bool prepare_next) {
  cudaStream_t main = stream_.main();
  const int64_t n = batch_.n;
  cudaStream_t side;
  DVT_RETURN_IF_ERROR(stream_.branch(main, &side));
  if (prepare_next) DVT_RETURN_IF_ERROR(lazy_grid_prepare(lazy_, bank_, batch_, offset, side));
  DVT_RETURN_IF_ERROR(lazy_grid_sweep(lazy_, clock_, offset, side));

  DVT_RETURN_IF_ERROR(enqueue_forward(offset, second_phase));
  LossCall loss = loss_;
  loss.residual = second_phase ? h_ : nullptr;
  loss.d_base_float = second_phase ? nullptr : d_base_float_;
  DVT_RETURN_IF_ERROR(loss_forward_backward(loss, bank_, main));
  DVT_RETURN_IF_ERROR(stream_.branch(main, &side));
  DVT_RETURN_IF_ERROR(loss_sum(loss.weights, loss.row_losses, n, clock_, offset, history_, status_, side));

  if (second_phase) {
    cudaStream_t chain;
    void *d_second = d_residual_hidden_[1], *d_first = d_residual_hidden_[0];
    DVT_RETURN_IF_ERROR(stream_.branch(main, &chain, true));
    DVT_RETURN_IF_ERROR(mlp_layer_backward(residual_, 2, d_h_, residual_hidden_[1], n, d_second, chain));
    DVT_RETURN_IF_ERROR(enqueue_update(residual_, 2, d_h_, residual_hidden_[1], offset, chain));
    DVT_RETURN_IF_ERROR(mlp_layer_backward(residual_, 1, d_second, residual_hidden_[0], n, d_first, chain));
    DVT_RETURN_IF_ERROR(enqueue_update(residual_, 1, d_second, residual_hidden_[0], offset, chain));
    DVT_RETURN_IF_ERROR(enqueue_update(residual_, 0, d_first, raw_, offset, chain));
  } else {
    DVT_RETURN_IF_ERROR(stream_.branch(main, &side));
    DVT_RETURN_IF_ERROR(artifacts_update(artifacts_, clock_, offset, side));
  }

  DVT_RETURN_IF_ERROR(mlp_layer_backward(field_, 1, d_base_, hidden_, n, d_hidden_, main));
  DVT_RETURN_IF_ERROR(enqueue_update(field_, 1, d_base_, hidden_, offset, main));
  DVT_RETURN_IF_ERROR(mlp_layer_backward(field_, 0, d_hidden_, nullptr, n, d_encoding_, main));
  DVT_RETURN_IF_ERROR(enqueue_update(field_, 0, d_hidden_, encoding_, offset, main));
  DVT_RETURN_IF_ERROR(
      lazy_grid_backward(lazy_, bank_, batch_, offset, d_encoding_, field_.layout.ld(0), loss_.rows, main));
  DVT_RETURN_IF_ERROR(lazy_grid_update(lazy_, clock_, offset, main));
  return stream_.join();
}

Status HashgridFit::advance_clock(int64_t steps) {
  Launch how;
  how.grid = how.block = dim3(1);
  how.stream = stream_.main();
  return launch("advance_clock", advance_clock_kernel, how, clock_, static_cast<int32_t>(steps));
}

Status HashgridFit::launch_graph(bool second_phase) {
  if (!graphs_.count(second_phase)) {
    cudaStream_t main = stream_.main();
    // Relaxed: a kernel's first launch may load its code, which allocates.
    DVT_CUDA(cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed), "capturing steps");
    Status status;
    for (int64_t i = 0; i < options_.graph_steps && status.ok(); ++i)
      status = enqueue_step(static_cast<int>(i), second_phase, true);
    if (status.ok()) status = advance_clock(options_.graph_steps);
    stream_.forget();
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(main, &graph);
    cudaGraphExec_t exec = nullptr;
    if (status.ok()) status = check(ended, "capturing steps");
    if (status.ok()) status = check(cudaGraphInstantiate(&exec, graph, 0), "making a graph of steps");
    if (graph) cudaGraphDestroy(graph);
    if (!status.ok()) {
      cudaGetLastError();
      return status;
    }
    graphs_[second_phase] = exec;
  }
  return check(cudaGraphLaunch(graphs_[second_phase], stream_.main()), "launching a graph of steps");
}

}  // namespace dvt::cuda

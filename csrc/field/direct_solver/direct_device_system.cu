#include "field/direct_solver/direct_device_system.h"

#include <algorithm>
#include <type_traits>

namespace dvt::cuda {
namespace {

// Iterations are enqueued this many at a time before the device is asked whether all channels are done; those too many
// end at once.
constexpr int kFirstLook = 4, kLookAgain = 2;

}  // namespace

// Every array from `base` on, or with no base only how many bytes that takes.
Status DeviceSystem::lay_out(const SweepShape& shape, bool coupled, char* base, size_t* bytes) {
  shape_ = shape;
  coupled_ = coupled;
  padded_ = padded_sizes(shape);
  const int64_t n = shape.grid.nodes(), p = shape.patches, c = shape.channels, around = n + 2 * (shape.grid.nx + 1);
  const int64_t node_vectors = padded_.channels * padded_.nodes, patch_vectors = padded_.channels * padded_.patches;
  size_t scratch;
  DVT_RETURN_IF_ERROR(cg_scratch_bytes(shape.grid, padded_.channels, &scratch));
  stencil_.grid = shape.grid;
  coupling_ = {padded_.nodes, padded_.patches, nullptr, nullptr, nullptr};
  const DeviceTraits* traits;
  DVT_RETURN_IF_ERROR(current_traits(&traits));
  splits_ = product_splits(coupling_, padded_.channels, traits->multiprocessors);
  Layout layout;
  const auto take = [&](auto*& pointer, int64_t count) {
    using T = std::remove_reference_t<decltype(*pointer)>;
    const size_t at = layout.add<T>(count);
    pointer = base && count > 0 ? reinterpret_cast<T*>(base + at) : nullptr;
  };
  const auto if_coupled = [&](int64_t count) { return coupled ? count : 0; };
  take(cg_.x, node_vectors);
  take(cg_.r, node_vectors);
  take(cg_.p, node_vectors);
  take(u_, if_coupled(node_vectors));
  take(cg_.p_scale, padded_.channels);
  take(cg_.rz, padded_.channels);
  take(cg_.target, padded_.channels);
  take(cg_.done, padded_.channels);
  take(cg_.state, 1);
  take(cg_.scratch, static_cast<int64_t>(scratch / sizeof(float)));
  take(stencil_.coefficients, around * 4);
  take(stencil_.rounded, around * 4);
  take(stencil_.bound, 1);
  take(stencil_.scale, n);
  take(space_.moments, shape.cells() * 10);
  take(space_.rows, n * 5);
  take(nodes_rhs_, n * c);
  take(patch_weights_, p);
  take(inverse_, p);
  take(ridge_, p);
  take(coupling_.high, if_coupled(padded_.patches * padded_.nodes));
  take(coupling_.low, if_coupled(padded_.patches * padded_.nodes));
  take(coupling_.occupied, if_coupled(padded_.patches / kZeroBlock * (padded_.nodes / kZeroBlock)));
  take(patches_rhs_, if_coupled(p * c));
  take(map_scratch_, if_coupled(p * c));
  take(t_, if_coupled(patch_vectors));
  take(t_high_, if_coupled(patch_vectors));
  take(t_low_, if_coupled(patch_vectors));
  take(t_scale_, if_coupled(padded_.channels));
  take(parts_, if_coupled(splits_ * patch_vectors));
  cg_.stencil = stencil_;
  cg_.channels = padded_.channels;
  cg_.stride = padded_.nodes;
  cg_.u = u_;
  *bytes = layout.bytes();
  return Status();
}

Status DeviceSystem::bytes(const SweepShape& shape, bool coupled, size_t* bytes) {
  return DeviceSystem().lay_out(shape, coupled, nullptr, bytes);
}

Status DeviceSystem::allocate(const SweepShape& shape, bool coupled, Arena& arena, cudaStream_t stream) {
  size_t bytes;
  if (memory_ && coupled == coupled_) {
    shape_ = shape;
  } else {
    DVT_RETURN_IF_ERROR(lay_out(shape, coupled, nullptr, &bytes));
    if (bytes > bytes_) {
      void* at;
      DVT_RETURN_IF_ERROR(arena.take(bytes, "the system of the direct solver", &at));
      memory_ = static_cast<char*>(at);
      bytes_ = bytes;
    }
    DVT_RETURN_IF_ERROR(lay_out(shape, coupled, memory_, &bytes));
    spoilt_ = true;
  }
  if (!spoilt_) return Status();
  spoilt_ = false;
  // Padding is zero from here on: nothing else writes there but zeros.
  return check(cudaMemsetAsync(memory_, 0, bytes_, stream), "clearing the system of the direct solver");
}

Status DeviceSystem::assemble(const SweepShape& shape, const RowPlaces& places, const RowList& list,
                              const uint32_t* patch_rows, const float* weights, double lambda, cudaStream_t stream) {
  shape_ = shape;
  DVT_RETURN_IF_ERROR(assemble_stencil(shape, places, list, weights, lambda, space_, stencil_, stream));
  DVT_RETURN_IF_ERROR(sum_patch_weights(shape, weights, patch_weights_, stream));
  if (!coupled_) return Status();
  DVT_RETURN_IF_ERROR(invert_patch_weights(shape.patches, patch_weights_, ridge_, inverse_, stream));
  return build_coupling(shape, places, patch_rows, weights, stencil_.scale, inverse_, coupling_, stream);
}

Status DeviceSystem::solve(bool from_guess, double tolerance, int max_iterations, const float* prior, float* nodes,
                           float* artifacts, int* iterations, cudaStream_t stream) {
  const int64_t n = shape_.grid.nodes(), p = shape_.patches, c = shape_.channels;
  if (coupled_) {  // r = S r_F - E' (d r_G)
    const size_t bytes = sizeof(float) * static_cast<size_t>(padded_.channels * padded_.patches);
    DVT_CUDA(cudaMemsetAsync(t_, 0, bytes, stream), "clearing a vector of the direct solver");
    DVT_RETURN_IF_ERROR(to_channels(p, c, padded_.patches, patches_rhs_, inverse_, false, nullptr, t_, stream));
    DVT_RETURN_IF_ERROR(split_channels(padded_.channels, padded_.patches, t_, t_high_, t_low_, t_scale_, stream));
    DVT_RETURN_IF_ERROR(
        multiply_to_nodes({coupling_, padded_.channels, t_high_, t_low_, t_scale_, u_, nullptr}, stream));
  }
  DVT_RETURN_IF_ERROR(
      to_channels(n, c, padded_.nodes, nodes_rhs_, stencil_.scale, false, coupled_ ? u_ : nullptr, cg_.r, stream));
  if (from_guess)
    DVT_RETURN_IF_ERROR(to_channels(n, c, padded_.nodes, nodes, stencil_.scale, true, nullptr, cg_.x, stream));
  DVT_RETURN_IF_ERROR(cg_start(cg_, from_guess, static_cast<float>(tolerance), stream));
  CgState state{1, 0};
  const uint32_t* active = &cg_.state->active;
  const int most = max_iterations + (from_guess ? 1 : 0);  // the guess's residual is not an iteration
  for (int number = 1, look = kFirstLook; number <= most && state.active; ++number) {
    if (coupled_) {
      DVT_RETURN_IF_ERROR(multiply_to_patches(
          {coupling_, padded_.channels, cg_.p, nullptr, splits_, parts_, t_, t_high_, t_low_, active}, stream));
      DVT_RETURN_IF_ERROR(
          multiply_to_nodes({coupling_, padded_.channels, t_high_, t_low_, cg_.p_scale, u_, active}, stream));
    }
    DVT_RETURN_IF_ERROR(cg_step(cg_, from_guess && number == 1, number, stream));
    if (number < look && number < most) continue;
    look = number + kLookAgain;
    DVT_CUDA(cudaMemcpyAsync(&state, cg_.state, sizeof(state), cudaMemcpyDeviceToHost, stream),
             "reading the state of the iterations");
    DVT_CUDA(cudaStreamSynchronize(stream), "iterations of the direct solver");
  }
  *iterations = state.active ? max_iterations + 1 : std::max(0, static_cast<int>(state.iterations) - from_guess);
  DVT_RETURN_IF_ERROR(from_channels(n, c, padded_.nodes, cg_.x, stencil_.scale, nullptr, nodes, stream));
  if (!coupled_) return Status();
  DVT_RETURN_IF_ERROR(coupled_product(nullptr, stream));
  return recover_artifacts(maps(), patches_rhs_, map_scratch_, prior, artifacts, stream);
}

// map_scratch = (E'^T f)^T for the f in x.
Status DeviceSystem::coupled_product(const float* nodes, cudaStream_t stream) {
  if (nodes)
    DVT_RETURN_IF_ERROR(to_channels(shape_.grid.nodes(), shape_.channels, padded_.nodes, nodes, stencil_.scale, true,
                                    nullptr, cg_.x, stream));
  uint16_t* low = reinterpret_cast<uint16_t*>(u_);  // which is not needed any more
  DVT_RETURN_IF_ERROR(split_channels(padded_.channels, padded_.nodes, cg_.x, cg_.p, low, cg_.p_scale, stream));
  DVT_RETURN_IF_ERROR(multiply_to_patches(
      {coupling_, padded_.channels, cg_.p, low, splits_, parts_, t_, nullptr, nullptr, nullptr}, stream));
  return from_channels(shape_.patches, shape_.channels, padded_.patches, t_, nullptr, cg_.p_scale, map_scratch_,
                       stream);
}

Status DeviceSystem::multiply_field(const float* nodes, float* out, cudaStream_t stream) {
  DVT_RETURN_IF_ERROR(coupled_product(nodes, stream));
  return field_sums(maps(), map_scratch_, out, stream);
}

}  // namespace dvt::cuda

// The linear system of one pass on the device, with everything that it is made of; direct_matrix.h has the algebra.
//
// Memory at full size: 330 MB, of which the products' vectors are 200 and the coupling 55; one piece.
#pragma once

#include "cuda/runtime.h"
#include "field/direct_solver/direct_arena.h"
#include "field/direct_solver/direct_cg.h"
#include "field/direct_solver/direct_maps.h"
#include "field/direct_solver/direct_matrix.h"
#include "field/direct_solver/direct_statistics.h"

namespace dvt::cuda {

class DeviceSystem {
 public:
  // coupled: G is solved for. How many views there are does not matter.
  static Status bytes(const SweepShape& shape, bool coupled, size_t* bytes);
  Status allocate(const SweepShape& shape, bool coupled, Arena& arena, cudaStream_t stream);

  // The matrix for these weights, and for the ridge in ridge() where G is solved for. patch_rows: as for
  // build_coupling.
  Status assemble(const SweepShape& shape, const RowPlaces& places, const RowList& list, const uint32_t* patch_rows,
                  const float* weights, double lambda, cudaStream_t stream);
  // F and G (of which prior is added) for nodes_rhs() and patches_rhs(). nodes: the guess where from_guess. An error
  // where the tolerance is not reached.
  Status solve(bool from_guess, double tolerance, int max_iterations, const float* prior, float* nodes,
               float* artifacts, int* iterations, cudaStream_t stream);
  // out [patches, channels] = E^T F.
  Status multiply_field(const float* nodes, float* out, cudaStream_t stream);

  // Not a number may have got into the padding: the next `allocate` clears it.
  void spoil() { spoilt_ = true; }

  PatchMaps maps() const { return {shape_.patches, shape_.channels, patch_weights_, inverse_, ridge_}; }
  float* nodes_rhs() const { return nodes_rhs_; }
  float* patches_rhs() const { return patches_rhs_; }
  float* ridge() const { return ridge_; }
  float* patch_weights() const { return patch_weights_; }
  float* map_scratch() const { return map_scratch_; }  // [patches, channels]
  float* channel_scratch() const { return t_; }        // [padded channels, padded patches]
  int64_t channel_stride() const { return padded_.patches; }
  const double* stencil_rows() const { return space_.rows; }

 private:
  Status lay_out(const SweepShape& shape, bool coupled, char* base, size_t* bytes);
  Status coupled_product(const float* nodes, cudaStream_t stream);

  SweepShape shape_{};
  PaddedSizes padded_{};
  bool coupled_ = false, spoilt_ = false;
  int splits_ = 1;
  char* memory_ = nullptr;
  size_t bytes_ = 0;
  Stencil stencil_{};
  StencilSpace space_{};
  Coupling coupling_{};
  CgVectors cg_{};
  float *u_ = nullptr, *nodes_rhs_ = nullptr, *patches_rhs_ = nullptr, *map_scratch_ = nullptr;
  float *t_ = nullptr, *parts_ = nullptr, *t_scale_ = nullptr;
  uint16_t *t_high_ = nullptr, *t_low_ = nullptr;
  float *patch_weights_ = nullptr, *inverse_ = nullptr, *ridge_ = nullptr;
};

}  // namespace dvt::cuda

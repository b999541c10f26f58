// Stage 1 as one linear least-squares problem.
//
// With the semantics F a bilinear grid and the artifacts G one vector a patch, minimise
//
//     sum_n w_n | y_n - sum_k b_nk F_k - G_p(n) - h_n |^2  +  lambda | grad F |^2  +  mu | G - G0 |^2
//
// over all rows n = (view, patch), at first with h = 0. The matrix is the same for every channel. With K = A^T W A +
// lambda L (9-point stencil), E = A^T W B, D = B^T W B (diagonal), where A holds the bilinear weights and B picks the
// patch:
//
//     [ K    E      ] [F]   [ r_F ]
//     [ E^T  D + mu ] [G] = [ r_G ]
//
// which direct_system.h assembles and solves.
//
// Few views tell F and a smooth G badly apart, so mu must be several rows to keep content out of a G that is small
// against the noise; it is estimated as the ratio of the two variances, and each patch has its own. It shrinks G; the G
// returned is therefore the mean over views of what F leaves.
//
// lambda, too, is the ratio of two variances: that of a row's residual over that of a step of F between neighbouring
// nodes. Detailed fields seen by many clean views then stay sharp, and noisy ones become smooth.
//
// What depends on both content and position is modelled as a gain field, h = A_p * (F(x) - mean F), channel by channel:
// the first term of any smooth h(x, p) beyond F and G, and unlike a predictor from y itself it cannot explain the data
// away. A is fitted to the residual and F, G to y - h, in turn (`residual` times).
//
// The right-hand side accumulates while views arrive. Reweighted passes (row weights that fall with the residuals of
// the row and of its patch, so that outlier tokens lose their say) read the features again, from the caller's memory or
// from a float16 copy.
#pragma once

#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/status.h"
#include "field/bilinear_grid/bilinear_grid.h"
#include "field/direct_solver/direct_system.h"

namespace dvt {

enum class DirectMethod { automatic = 0, schur, pcg };

struct DirectOptions {
  bool automatic_smoothness = true;  // lambda from the data: 0.2 in the first pass, estimated after it
  double smoothness = 0;             // lambda otherwise, against a row of weight 1; > 0
  bool automatic_ridge = true;       // mu from the data: 5 in the first pass, estimated after it
  double artifact_ridge = 0;         // mu otherwise, in rows: how many observations of G0 (or of zero) it counts for
  int passes = 4;                    // 1: plain least squares; more: reweighted until the weights settle
  int residual = 0;                  // how many times h and (F, G) are fitted in turn
  double outlier_threshold = 1.5;    // row weight 1 / max(1, max(e, median e of its patch) / (threshold * median e))^2
  bool fix_artifacts = false;        // G = G0, not solved for
  DirectMethod method = DirectMethod::automatic;
  double tolerance = 1e-5;   // pcg: relative residual of every channel
  int max_iterations = 200;  // pcg
};

struct DirectReport {
  DirectMethod method = DirectMethod::automatic;
  int passes = 0;              // solved; fewer than asked for where the weights settled
  int iterations = 0;          // pcg: the most that any channel block took in the last pass
  double smoothness = 0;       // lambda of the last pass
  double artifact_ridge = 0;   // mu of an ordinary patch in the last pass
  double median_residual = 0;  // of |y - F - G| over rows, before the last pass (passes > 1)
  double outlier_share = 0;    // rows with weight below one half in the last pass
};

// How the features of a view outlast `add`.
enum class Keep { nothing, borrow, half };  // one pass only | the caller's memory stays valid | a float16 copy

class DirectSolver {
 public:
  DirectSolver(GridShape grid, int64_t patches, int64_t channels, Keep keep, bool cosine);

  // features [views, patches, channels], coords [views, patches, 2]. An error names the first view with NaN or
  // infinity; then nothing of this call is kept.
  Status add(int64_t views, const float* features, const float* coords);

  // prior [patches, channels] or null: G0. nodes [grid.nodes(), channels] and artifacts [patches, channels] are
  // written.
  Status solve(const DirectOptions& options, const float* prior, float* nodes, float* artifacts, DirectReport* report);

  GridShape grid() const { return grid_; }
  int64_t patches() const { return patches_; }
  int64_t channels() const { return channels_; }

 private:
  void place(int64_t views, const float* coords);
  void accumulate(int64_t first, int64_t views, float* node_sums, float* patch_sums) const;
  void view_residual(int64_t v, const float* nodes, const float* artifacts, float* energy) const;
  bool reweight(const DirectOptions& options, const float* nodes, const float* artifacts, DirectSystem* system,
                DirectReport* report);
  bool estimate_ridge(const float* artifacts, const float* prior, double median_residual, double* mu,
                      DirectSystem* system) const;
  double estimated_smoothness(const float* nodes, double median_residual) const;
  static float unshrinkage(const DirectSystem& system, int64_t patch);
  void fit_gain(const float* nodes, const float* artifacts, float* gain, float* centre) const;
  void mean_left_by_field(const float* nodes, const float* gain, const float* centre, float* scratch,
                          float* artifacts) const;
  Status solve_once(const DirectSystem& system, const DirectOptions& options, const float* prior, float* nodes,
                    float* artifacts, DirectReport* report) const;

  GridShape grid_;
  int64_t patches_, channels_, views_ = 0;
  Keep keep_;
  bool cosine_;
  std::vector<Tap> taps_;                      // [views, patches]
  std::vector<float> base_weights_;            // [views, patches]: 1, or the cosine term's
  std::vector<float> weights_;                 // [views, patches]: base times the outlier weight of the current pass
  std::vector<Buffer<uint16_t>> bank_;         // a view each, with Keep::half
  std::vector<const uint16_t*> half_;          // where they are
  std::vector<const float*> borrowed_;         // a view each, with Keep::borrow
  Buffer<float> first_nodes_, first_patches_;  // right-hand side of the first pass
};

}  // namespace dvt

#include "transformer/layer_norm/layer_norm.h"

namespace dvt {

void layer_norm(const NormCall& call) { layer_norm_kernels().run(call); }

}  // namespace dvt

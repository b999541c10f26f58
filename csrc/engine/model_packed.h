// The inside of a Model; for sessions.
#pragma once

#include <optional>
#include <string>

#include "core/isa.h"
#include "engine/weights.h"
#include "transformer/block/block.h"

namespace dvt {

struct PackedPatchEmbed {
  std::array<int64_t, 2> patch = {16, 16}, stride = {16, 16};
  PackedLinear linear;
  PackedNorm norm;
  std::array<int64_t, 2> image_size = {224, 224};
  std::array<double, 3> mean = {0, 0, 0}, std = {1, 1, 1};
};

struct PackedModel {
  Isa isa = Isa::generic;  // what the weights are packed for
  Dtype dtype = Dtype::float32;
  Slabs memory;  // what the packed layers point into
  std::optional<PackedPatchEmbed> patch_embed;
  std::optional<PackedTransformer> vit, denoiser;
  std::string metadata;
};

}  // namespace dvt

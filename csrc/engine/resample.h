// Position embeddings for another grid than the one they were trained on.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace dvt {

// maps [from[0] * from[1], channels] -> [to[0] * to[1], channels]: bicubic with antialias, a = -0.5, edges not aligned,
// as timm's `resample_abs_pos_embed` does it (through torch's interpolate); summed in double.
std::vector<float> resample_bicubic(const std::vector<float>& maps, int64_t channels, std::array<int64_t, 2> from,
                                    std::array<int64_t, 2> to);

}  // namespace dvt

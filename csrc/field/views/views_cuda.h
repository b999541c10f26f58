// The views of stage 1, made on a device from pixels that are uploaded once an image.
#pragma once

#include <cuda_runtime.h>

#include "field/views/views.h"

namespace dvt::cuda {

// Bytes of workspace for a request: filter tables, of at most 64 views at a time. Its boxes must be filled in.
Status views_workspace_bytes(const ViewsRequest& request, size_t* bytes);

// Two launches for each 64 views. float32 results are the bits of what Pillow and `ViT.to_input` make, 16-bit ones
// these, rounded. What is in main memory is read before this returns.
Status views_forward(const ViewsRequest& request);

}  // namespace dvt::cuda

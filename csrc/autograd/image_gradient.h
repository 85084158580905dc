// The gradient of a convolution with respect to an image, or whatever else has few channels.
#pragma once

#include "nodes.h"

namespace gk {

// Whether image_gradient computes this convolution's, on the CPU and with nobody tracing; there it is faster than stock's kernel.
bool is_of_image(const Tensor& g, const Tensor& w, IntArrayRef dilation, int64_t groups);

// g (N, O, …), w (O, C, …), the image's `sizes` (N, C, …), in one dimension or two; the memory format is that of g.
Tensor image_gradient(const Tensor& g, const Tensor& w, IntArrayRef sizes, IntArrayRef stride, IntArrayRef padding);

}  // namespace gk

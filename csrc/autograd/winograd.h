// Convolutions with fewer products than stock's (csrc/cpu/winograd.h), and their gradients.
#pragma once

#include <vector>

#include "nodes.h"

namespace gk {

struct Geometry {
  std::vector<int64_t> stride, padding, dilation, output_padding;
  bool transposed;
  int64_t groups;
};

namespace winograd {

// Whether the functions below compute this convolution of x with w, on the CPU with nobody tracing; there they are faster than stock.
// `other` is the bias, or the gradient that arrives.
bool fits(const Geometry& geometry, const Tensor& x, const Tensor& w, const Tensor& other);

// In stock's choice of memory format, channels_last where x or w is.
Tensor convolution(const Geometry& geometry, const Tensor& x, const Tensor& w, const Tensor& b);
Tensor input_gradient(const Geometry& geometry, const Tensor& g, const Tensor& x, const Tensor& w);
Tensor weight_gradient(const Geometry& geometry, const Tensor& g, const Tensor& x, const Tensor& w);

}  // namespace winograd
}  // namespace gk

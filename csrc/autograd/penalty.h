// The penalty on the norms of a critic's gradient, as autograd nodes around the kernels of grad_norm_penalty.
#pragma once

#include "nodes.h"

namespace gk {

struct Penalty {
  double weight, target;
  bool one_sided;
};

// weight * P(grads) and the norms (gankernels/ops/grad_norm_penalty.py), below autograd
std::tuple<Tensor, Tensor> penalty_of(const Tensor& grads, const Penalty& penalty);
// the gradient of it in grads, given the one that arrives at it; differentiable
Tensor penalty_gradient(const Tensor& grad, const Tensor& grads, const Tensor& norms, const Penalty& penalty);

}  // namespace gk

// What demodulation needs to know of a weight: sums of its squares, per output and input channel.
//
// Stock's derivative of w.square().sum((2, 3)) takes five passes over memory the size of w, which of a layer at 8x8 are a fifth of the
// time of its convolutions; 2 w g is one. In stock ops, it differentiates to any order.
#include <torch/library.h>

#include "nodes.h"

namespace {

using namespace gk;

struct SumOfSquares : SavingNode {
  std::string name() const override { return "gankernels::SumOfSquares"; }
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    const Tensor w = unpack(0);
    auto sizes = at::SymDimVector(w.dim(), 1);
    for (const int64_t i : {0, 1}) sizes[i] = w.sym_size(i);
    return {w * (2 * grads[0]).reshape_symint(sizes)};
  }
};

// Over all but the first two dimensions of w.
Tensor sum_of_squares(const Tensor& w) {
  return record<SumOfSquares>({w}, [&] { return (w * w).flatten(2).sum(2); },
                              [&](auto& node, const Tensor&) { node.save({w}); });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(gankernels, m) { m.def("sum_of_squares(Tensor weight) -> Tensor", sum_of_squares); }

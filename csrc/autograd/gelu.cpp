// gelu and its first derivative as autograd nodes (formulas in gankernels/ops/gelu.py).
#include "fold.h"

#include <torch/library.h>

namespace {

using namespace gk;

// Edges: grad, x.
struct GeluBackward : SavingNode {
  bool tanh_form;
  std::string name() const override { return "gankernels::GeluBackward"; }
  variable_list apply(variable_list&& v) override {
    if (!v[0].defined()) return {Tensor(), Tensor()};
    static const auto op =
        registered<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, bool)>("gankernels::gelu_bwd_bwd");
    auto [grad, x] = op.call(v[0], unpack(0), unpack(1), tanh_form);
    return {grad, x};
  }
};

Tensor gelu_bwd(const Tensor& grad, const Tensor& x, bool tanh_form) {
  static const auto op = registered<Tensor(const Tensor&, const Tensor&, bool)>("gankernels::gelu_bwd");
  return record<GeluBackward>({grad, x}, [&] { return op.call(grad, x, tanh_form); },
                              [&](auto& node, const Tensor&) {
                                node.tanh_form = tanh_form;
                                node.save({grad, x});
                              });
}

struct Gelu : SavingNode {
  static constexpr auto kName = "gankernels::Gelu";
  bool tanh_form;
  std::string name() const override { return kName; }
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    return {gelu_bwd(grads[0], unpack(0), tanh_form)};
  }
};

Tensor gelu(const Tensor& x, bool tanh_form) {
  static const auto op = registered<Tensor(const Tensor&, bool)>("gankernels::gelu");
  return record<Gelu>({x}, [&] { return op.call(x, tanh_form); },
                      [&](auto& node, const Tensor&) {
                        node.tanh_form = tanh_form;
                        node.save({x});
                      });
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) {
  m.impl("gelu", gelu);
  m.impl("gelu_bwd", gelu_bwd);
}

TORCH_LIBRARY_FRAGMENT(gankernels, m) { declare_keeps_rows(Gelu::kName); }

// interpolate and its first derivative as autograd nodes (formulas in gankernels/ops/interpolate.py); the derivatives beyond are
// these ops again, and stock's.
#include "nodes.h"

#include <torch/library.h>

namespace {

using namespace gk;
using Tensors = std::tuple<Tensor, Tensor, Tensor>;

Tensor interpolate(const Tensor& real, const Tensor& fake, const Tensor& eps);
Tensors interpolate_bwd(const Tensor& grad, const Tensor& eps, const optional<Tensor>& real, const optional<Tensor>& fake);

// A number per sample, to multiply `like` with.
Tensor column(const Tensor& t, const Tensor& like) {
  std::vector<int64_t> shape(like.dim(), 1);
  shape[0] = -1;
  return t.view(shape);
}

Tensor scaled(const Tensor& grad, const Tensor& per_sample) {
  return (column(per_sample, grad) * grad).to(grad.scalar_type());
}

// <grad_i, real_i - fake_i> where nothing else is asked for.
Tensor eps_gradient(const Tensor& grad, const Tensor& real, const Tensor& fake, at::ScalarType dtype) {
  const Tensor products = grad.to(dtype) * (real.to(dtype) - fake.to(dtype));
  return products.dim() > 1 ? products.flatten(1).sum(1) : products;
}

// Edges: grad, eps, real, fake.
struct InterpolateBackward : SavingNode {
  std::string name() const override { return "gankernels::InterpolateBackward"; }
  variable_list apply(variable_list&& v) override {
    variable_list out(4);
    const Tensor grad = unpack(0), eps = unpack(1), real = unpack(2), fake = unpack(3), &v_eps = v[2];
    const bool of_points = v[0].defined() || v[1].defined(), of_eps = real.defined() && v_eps.defined();
    if (!of_points && !of_eps) return out;
    const auto moved = [&](const Tensor& t) { return t.defined() ? t : at::zeros_like(grad); };
    const Tensor v_real = of_points ? moved(v[0]) : Tensor(), v_fake = of_points ? moved(v[1]) : Tensor();
    if (wants(0)) {
      if (of_points) out[0] = interpolate(v_real, v_fake, eps);
      if (of_eps) {
        const auto dtype = eps.scalar_type();
        const Tensor difference = real.to(dtype) - fake.to(dtype), by = column(v_eps, grad);
        out[0] = (of_points ? at::addcmul(out[0].to(dtype), by, difference) : by * difference).to(grad.scalar_type());
      }
    }
    const bool wants_points = of_eps && (wants(2) || wants(3));
    if (of_points && wants(1) && wants_points) {
      std::tie(out[2], std::ignore, out[1]) = interpolate_bwd(grad, v_eps, v_real, v_fake);
    } else {
      if (of_points && wants(1)) out[1] = eps_gradient(grad, v_real, v_fake, eps.scalar_type());
      if (wants_points) out[2] = scaled(grad, v_eps);
    }
    if (wants_points) out[3] = -out[2];
    return out;
  }
};

Tensors interpolate_bwd(const Tensor& grad, const Tensor& eps, const optional<Tensor>& real_, const optional<Tensor>& fake_) {
  static const auto op = registered<Tensors(const Tensor&, const Tensor&, const optional<Tensor>&, const optional<Tensor>&)>(
      "gankernels::interpolate_bwd");
  const Tensor real = real_.value_or(Tensor()), fake = fake_.value_or(Tensor());
  const std::initializer_list<Tensor> inputs{grad, eps, real, fake};
  refuse_other_autograds(inputs);
  const Tensors out = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return op.call(grad, eps, real_, fake_);
  }();
  if (need_gradient(inputs)) {
    auto node = node_of<InterpolateBackward>(inputs);
    for (const Tensor& t : {std::get<0>(out), std::get<1>(out), std::get<2>(out)}) torch::autograd::set_history(t, node);
    node->save(inputs);
  }
  return out;
}

// Edges: real, fake, eps.
struct Interpolate : SavingNode {
  std::string name() const override { return "gankernels::Interpolate"; }
  variable_list apply(variable_list&& grads) override {
    const Tensor& grad = grads[0];
    variable_list out(3);
    if (!grad.defined()) return out;
    const Tensor real = unpack(0), fake = unpack(1), eps = unpack(2);
    if (wants(0) && wants(1)) {
      std::tie(out[0], out[1], out[2]) = interpolate_bwd(grad, eps, optional_of(real), optional_of(fake));
      if (!real.defined()) out[2] = Tensor();
      return out;
    }
    if (wants(0)) out[0] = scaled(grad, eps);
    if (wants(1)) out[1] = scaled(grad, 1 - eps);
    if (wants(2)) out[2] = eps_gradient(grad, real, fake, eps.scalar_type());
    return out;
  }
};

Tensor interpolate(const Tensor& real, const Tensor& fake, const Tensor& eps) {
  static const auto op = registered<Tensor(const Tensor&, const Tensor&, const Tensor&)>("gankernels::interpolate");
  return record<Interpolate>({real, fake, eps}, [&] { return op.call(real, fake, eps); },
                             [&](auto& node, const Tensor&) {
                               if (eps.requires_grad())
                                 node.save({real, fake, eps});
                               else
                                 node.save({Tensor(), Tensor(), eps});
                             });
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) {
  m.impl("interpolate", interpolate);
  m.impl("interpolate_bwd", interpolate_bwd);
}

// bias_act and its first derivative as autograd nodes (formulas in gankernels/ops/bias_act.py). In Python the nodes of a layer of a
// mapping network take twice as long as its kernels, and they do not know which gradients a backward asks for.
#include "fold.h"

#include <torch/library.h>

namespace {

using namespace gk;
using Side = optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Of the numbers that activations have by their order in gankernels/ops/bias_act.py; up to kLeakyReLU they are piecewise linear.
enum : int64_t { kLinear = 0, kLeakyReLU = 2, kSwish = 8 };

// The function after the sum.
struct Shape {
  int64_t act;
  double alpha, gain;
  optional<double> clamp;

  bool is_piecewise_linear() const { return act <= kLeakyReLU; }
  bool is_linear() const { return act == kLinear && !clamp; }
  bool keeps_y(bool scaled) const { return !scaled && act != kSwish && (act != kLeakyReLU || alpha >= 0); }
};

Tensor like(const Side& side, const Tensor& gradient) { return side ? gradient.to(side->scalar_type()) : Tensor(); }

// bias_act_bwd, without the gradients of noise and b where only the others are wanted and the kernel does not need them.
Gradients first_derivative(const Tensor& grad, const Tensor& saved, const Side& scale, const Side& noise, const Side& b,
                           const Shape& f, bool of_noise, bool of_b);

struct OfShape : SavingNode {
  Shape f;
};

// Edges: grad, saved, scale, noise, b.
struct BiasActBackward : OfShape {
  bool of_noise, of_b;  // whether there are such outputs; those of absent ones have no elements, and may get gradients
  std::string name() const override { return "gankernels::BiasActBackward"; }

  variable_list apply(variable_list&& v) override {
    variable_list out(5);
    const Tensor saved_ = unpack(1);
    const Side scale = optional_of(unpack(2)), noise = optional_of(unpack(3)), b = optional_of(unpack(4));
    const Side v_scale = scale ? optional_of(v[1]) : std::nullopt, v_noise = of_noise ? optional_of(v[2]) : std::nullopt,
               v_b = of_b ? optional_of(v[3]) : std::nullopt;
    if (!v[0].defined() && !v_scale && !v_noise && !v_b) return out;
    const Tensor moved = v[0].defined() ? v[0] : at::zeros_like(saved_);
    const bool from_y = f.keeps_y(scale.has_value());
    static const auto op =
        registered<std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
            const Tensor&, const Side&, const Side&, const Side&, const Tensor&, const Tensor&, const Side&, const Side&,
            const Side&, int64_t, double, double, optional<double>)>("gankernels::bias_act_bwd_bwd");
    if (from_y && f.is_piecewise_linear()) {  // grad does not enter, and was not kept
      out[0] = std::get<0>(op.call(moved, v_scale, v_noise, v_b, moved, saved_, scale, noise, b, f.act, f.alpha, f.gain, f.clamp));
    } else {
      const auto [d_grad, d_saved, d_scale, d_noise, d_b] =
          op.call(moved, v_scale, v_noise, v_b, unpack(0), saved_, scale, noise, b, f.act, f.alpha, f.gain, f.clamp);
      out[0] = d_grad;
      out[1] = d_saved;
      if (!from_y) out[2] = like(scale, d_scale), out[3] = like(noise, d_noise), out[4] = like(b, d_b);
    }
    // Where y was kept noise and b do not enter. Zero rather than absent, as stock has it: data-parallel reducers count on .grad.
    if (from_y && noise) out[3] = at::zeros_like(*noise);
    if (from_y && b) out[4] = at::zeros_like(*b);
    return out;
  }
};

// Edges: x, scale, noise, b.
struct BiasAct : OfShape, KnowsRows {
  std::string name() const override { return "gankernels::BiasAct"; }
  bool keeps_rows(size_t, c10::SymIntArrayRef in, c10::SymIntArrayRef out) const override {
    return in.size() == out.size() && in[0] == out[0];
  }

  variable_list apply(variable_list&& grads) override {
    variable_list out(4);
    const Tensor& grad = grads[0];
    if (!grad.defined()) return out;
    if (!wants(0) && !wants(1) && !wants(2) && !wants(3)) return out;
    const Tensor kept = unpack(0);
    const Side scale = optional_of(unpack(1)), noise = optional_of(unpack(2)), b = optional_of(unpack(3));
    const auto [dx, d_scale, d_noise, d_b] =
        first_derivative(grad, kept.defined() ? kept : grad, scale, noise, b, f, wants(2), wants(3));
    out[0] = dx;
    out[1] = like(scale, d_scale);
    if (wants(2)) out[2] = like(noise, d_noise);
    if (wants(3)) out[3] = like(b, d_b);
    return out;
  }
};

Tensor bias_act(const Tensor& x, const Side& scale_, const Side& noise_, const Side& b_, int64_t act, double alpha, double gain,
                optional<double> clamp) {
  const Tensor scale = scale_.value_or(Tensor()), noise = noise_.value_or(Tensor()), b = b_.value_or(Tensor());
  const std::initializer_list<Tensor> inputs{x, scale, noise, b};
  refuse_other_autograds(inputs);
  static const auto op = registered<Tensor(const Tensor&, const Side&, const Side&, const Side&, int64_t, double, double,
                                           optional<double>)>("gankernels::bias_act");
  const Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return op.call(x, scale_, noise_, b_, act, alpha, gain, clamp);
  }();
  if (need_gradient(inputs)) {
    const Shape f{act, alpha, gain, clamp};
    auto node = node_of<BiasAct>(inputs);
    node->f = f;
    torch::autograd::set_history(y, node);
    if (!f.keeps_y(scale.defined())) {
      node->save(inputs);
    } else {
      const auto wanted = [](const Tensor& side) { return side.defined() && side.requires_grad() ? side : Tensor(); };
      node->save({f.is_linear() ? Tensor() : y, Tensor(), wanted(noise), wanted(b)}, y);
    }
  }
  return y;
}

Gradients first_derivative(const Tensor& grad, const Tensor& saved_, const Side& scale_, const Side& noise_, const Side& b_,
                           const Shape& f, bool of_noise, bool of_b) {
  const Tensor scale = scale_.value_or(Tensor()), noise = noise_.value_or(Tensor()), b = b_.value_or(Tensor());
  const std::initializer_list<Tensor> inputs{grad, saved_, scale, noise, b};
  refuse_other_autograds(inputs);
  const bool from_y = f.keeps_y(scale.defined());
  of_noise = noise.defined() && (of_noise || !from_y);
  of_b = b.defined() && (of_b || !from_y);
  static const auto op = registered<Gradients(const Tensor&, const Tensor&, const Side&, const Side&, const Side&, int64_t, double,
                                              double, optional<double>)>("gankernels::bias_act_bwd");
  const Gradients out = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return op.call(grad, saved_, scale_, of_noise ? noise_ : std::nullopt, of_b ? b_ : std::nullopt, f.act, f.alpha, f.gain, f.clamp);
  }();
  if (need_gradient(inputs)) {
    auto node = node_of<BiasActBackward>(inputs);
    node->f = f;
    node->of_noise = of_noise;
    node->of_b = of_b;
    for (const Tensor& t : {std::get<0>(out), std::get<1>(out), std::get<2>(out), std::get<3>(out)})
      torch::autograd::set_history(t, node);
    node->save({from_y && f.is_piecewise_linear() ? Tensor() : grad, saved_, scale, noise, b});
  }
  return out;
}

Gradients bias_act_bwd(const Tensor& grad, const Tensor& saved, const Side& scale, const Side& noise, const Side& b, int64_t act,
                       double alpha, double gain, optional<double> clamp) {
  return first_derivative(grad, saved, scale, noise, b, {act, alpha, gain, clamp}, true, true);
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) {
  m.impl("bias_act", bias_act);
  m.impl("bias_act_bwd", bias_act_bwd);
}

// Group norm as fast_double_backward routes it, and layer norm as group norm of rows with a single group.
//
// The nodes know what a backward asks for: a penalty's first wants the gradient in x alone, and then the parameters' are neither
// computed nor differentiated. The derivative as an op by itself has one in Python too.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <c10/util/Type.h>
#include <torch/library.h>

#include "fold.h"

namespace {

using namespace gk;
using torch::autograd::AutogradContext;
using torch::autograd::Function;

using Tensors = std::tuple<Tensor, Tensor, Tensor>;
using Parameter = optional<Tensor>;

template <class Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// The kernels, below what is differentiated here; that of the second derivative raises where it is differentiated itself.
Tensors call_norm(const Tensor& x, const Parameter& w, const Parameter& b, int64_t groups, double eps, bool centre) {
  static const auto op =
      find<Tensors(const Tensor&, const Parameter&, const Parameter&, int64_t, double, bool)>("gankernels::group_norm");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, w, b, groups, eps, centre);
}

Tensors call_bwd(const Tensor& g, const Tensor& x, const Parameter& w, const Tensor& mean, const Tensor& rstd, int64_t groups,
                 bool centre, bool of_x, bool of_parameters) {
  static const auto op = find<Tensors(const Tensor&, const Tensor&, const Parameter&, const Tensor&, const Tensor&, int64_t, bool,
                                      bool, bool)>("gankernels::group_norm_bwd");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(g, x, w, mean, rstd, groups, centre, of_x, of_parameters);
}

Tensors call_bwd_bwd(const Tensor& v, const Parameter& vw, const Parameter& vb, const Tensor& g, const Tensor& x,
                     const Parameter& w, const Tensor& mean, const Tensor& rstd, int64_t groups, bool centre, bool of_weight) {
  static const auto op =
      find<Tensors(const Tensor&, const Parameter&, const Parameter&, const Tensor&, const Tensor&, const Parameter&, const Tensor&,
                   const Tensor&, int64_t, bool, bool)>("gankernels::group_norm_bwd_bwd");
  return op.call(v, vw, vb, g, x, w, mean, rstd, groups, centre, of_weight);
}

Parameter optional_of(const Tensor& t) { return t.defined() ? Parameter(t) : std::nullopt; }

// Layer norm over the `trailing` last dimensions, `features` elements in all, is group norm of rows (R, features); 0 for group
// norm itself. Of channels_last images the rows are taken in memory order, and so are the parameters.
struct Norm : torch::CustomClassHolder {
  int64_t groups = 1, trailing = 0, features = 0;
  double eps = 0;
  bool centre = true, last = false;

  Tensor rows(const Tensor& t) const {
    if (trailing == 0) return t;
    return (last ? t.permute({0, 2, 3, 1}) : t).reshape({-1, features});
  }
  Tensor back(const Tensor& t, const Tensor& like) const {
    if (trailing == 0) return t;
    return last ? t.view_as(like.permute({0, 2, 3, 1})).permute({0, 3, 1, 2}) : t.view_as(like);
  }
  Parameter parameter(const Tensor& t) const {
    if (!t.defined()) return std::nullopt;
    return (last ? t.permute({1, 2, 0}) : t).reshape({-1});
  }
  Tensor parameter_back(const Tensor& t, const Tensor& like) const {
    return (last ? t.view_as(like.permute({1, 2, 0})).permute({2, 0, 1}).contiguous() : t.view_as(like)).to(like.scalar_type());
  }

  Tensors bwd(const Tensor& g, const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& mean, const Tensor& rstd, bool of_x,
              bool of_w, bool of_b) const {
    auto [gx, gw, gb] = call_bwd(rows(g), rows(x), parameter(w), mean, rstd, groups, centre, of_x, of_w || of_b);
    return {of_x ? back(gx, x) : Tensor(), of_w ? parameter_back(gw, w) : Tensor(), of_b ? parameter_back(gb, b) : Tensor()};
  }
};

void keep(AutogradContext* ctx, const StatePtr<Norm>& norm, const variable_list& tensors) {
  ctx->set_materialize_grads(false);
  ctx->save_for_backward(tensors);
  ctx->saved_data["norm"] = c10::IValue::make_capsule(norm);
}

StatePtr<Norm> kept(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<Norm>(ctx->saved_data["norm"].toCapsule());
}

// Its outputs are those asked for, of the gradients in x, weight and bias.
struct NormGradient : Function<NormGradient> {
  static variable_list forward(AutogradContext* ctx, const Tensor& g, const Tensor& x, const Parameter& w, const Parameter& b,
                               const Tensor& mean, const Tensor& rstd, const StatePtr<Norm>& norm, bool of_x, bool of_w,
                               bool of_b) {
    keep(ctx, norm, {g, x, w.value_or(Tensor()), b.value_or(Tensor()), mean, rstd});
    ctx->saved_data["of"] = std::vector<bool>{of_x, of_w, of_b};
    const auto [gx, gw, gb] = norm->bwd(g, x, w.value_or(Tensor()), b.value_or(Tensor()), mean, rstd, of_x, of_w, of_b);
    variable_list outputs;
    for (const auto& gradient : {gx, gw, gb})
      if (gradient.defined()) outputs.push_back(gradient);
    return outputs;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto norm = kept(ctx);
    const Tensor &g = saved[0], &x = saved[1], &w = saved[2], &b = saved[3], &mean = saved[4], &rstd = saved[5];
    Tensor v[3];
    const auto of = ctx->saved_data["of"].toBoolList();
    for (int i = 0, next = 0; i < 3; ++i)
      if (of[i]) v[i] = grads[next++];
    variable_list out(10);
    if (!v[0].defined() && !v[1].defined() && !v[2].defined()) return out;
    const bool of_weight = w.defined() && ctx->needs_input_grad(2) && wants_weights();
    const auto [gg, gx, gw] =
        call_bwd_bwd(norm->rows(v[0].defined() ? v[0] : at::zeros_like(x)), norm->parameter(v[1]), norm->parameter(v[2]),
                     norm->rows(g), norm->rows(x), norm->parameter(w), mean, rstd, norm->groups, norm->centre, of_weight);
    if (ctx->needs_input_grad(0)) out[0] = norm->back(gg, g);
    if (ctx->needs_input_grad(1)) out[1] = norm->back(gx, x);
    if (of_weight) out[2] = norm->parameter_back(gw, w);
    // as for the bias of a convolution: zero rather than absent below another layer
    if (b.defined() && ctx->needs_input_grad(3) && ctx->needs_input_grad(0)) out[3] = at::zeros_like(b);
    return out;
  }
};

struct NormNode : Function<NormNode> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Parameter& w, const Parameter& b,
                               const StatePtr<Norm>& norm) {
    const Tensor weight = w.value_or(Tensor()), bias = b.value_or(Tensor());
    auto [y, mean, rstd] =
        call_norm(norm->rows(x), norm->parameter(weight), norm->parameter(bias), norm->groups, norm->eps, norm->centre);
    ctx->mark_non_differentiable({mean, rstd});
    keep(ctx, norm, {x, weight, bias, mean, rstd});
    return {norm->back(y, x), mean, rstd};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor& g = grads[0];
    if (!g.defined()) return variable_list(4);
    const auto saved = ctx->get_saved_variables();
    const auto norm = kept(ctx);
    const Tensor &x = saved[0], &w = saved[1], &b = saved[2], &mean = saved[3], &rstd = saved[4];
    const bool of_x = ctx->needs_input_grad(0), of_b = b.defined() && ctx->needs_input_grad(2);
    const bool of_w = w.defined() && ctx->needs_input_grad(1) && wants_weights();
    if (!of_x && !of_w && !of_b) return variable_list(4);
    if (!at::GradMode::is_enabled()) {
      const auto [gx, gw, gb] = norm->bwd(g, x, w, b, mean, rstd, of_x, of_w, of_b);
      return {gx, gw, gb, Tensor()};
    }
    const auto found = NormGradient::apply(g, x, optional_of(w), optional_of(b), mean, rstd, norm, of_x, of_w, of_b);
    variable_list out(4);
    int next = 0;
    for (const auto& [i, wanted] : {std::pair{0, of_x}, {1, of_w}, {2, of_b}})
      if (wanted) out[i] = found[next++];
    return out;
  }
};

// On a GPU autocast runs normalisations in float32; on the CPU they take what they get.
Tensor for_autocast(const Tensor& t) {
  const auto device = t.device().type();
  if (device != at::kCUDA || !at::autocast::is_autocast_enabled(device)) return t;
  return at::autocast::cached_cast(at::kFloat, t, device);
}

Parameter for_autocast(const Parameter& t) { return t ? Parameter(for_autocast(*t)) : t; }

Tensors group_norm(const Tensor& x, const Parameter& w, const Parameter& b, int64_t groups, double eps, bool centre) {
  const auto differentiates = [](const Parameter& t) { return t && t->requires_grad(); };
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || differentiates(w) || differentiates(b)))
    return call_norm(x, w, b, groups, eps, centre);
  auto norm = c10::make_intrusive<Norm>();
  norm->groups = groups;
  norm->eps = eps;
  norm->centre = centre;
  const auto found = NormNode::apply(x, w, b, norm);
  return {found[0], found[1], found[2]};
}

Tensor fast_group_norm(const Tensor& x, const Parameter& w, const Parameter& b, int64_t groups, double eps) {
  return std::get<0>(group_norm(for_autocast(x), for_autocast(w), for_autocast(b), groups, eps, true));
}

Tensor fast_layer_norm(const Tensor& x_, const Parameter& w, const Parameter& b, at::IntArrayRef shape, double eps, bool centre) {
  const Tensor x = for_autocast(x_);
  auto norm = c10::make_intrusive<Norm>();
  norm->eps = eps;
  norm->centre = centre;
  norm->trailing = int64_t(shape.size());
  norm->features = c10::multiply_integers(shape);
  norm->last = x.dim() == 4 && shape.size() == 3 && x.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  return NormNode::apply(x, for_autocast(w), for_autocast(b), norm)[0];
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) { m.impl("group_norm", group_norm); }

TORCH_LIBRARY_FRAGMENT(gankernels, m) {
  declare_keeps_rows(c10::demangle(typeid(torch::autograd::CppNode<NormNode>).name()));
  m.def("fast_group_norm(Tensor input, Tensor? weight, Tensor? bias, int groups, float eps) -> Tensor", fast_group_norm);
  m.def("fast_layer_norm(Tensor input, Tensor? weight, Tensor? bias, int[] shape, float eps, bool centre) -> Tensor",
        fast_layer_norm);
}

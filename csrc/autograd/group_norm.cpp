// Group norm as fast_double_backward routes it, and layer norm as group norm of rows with a single group.
//
// The nodes know what a backward asks for: a penalty's first wants the gradient in x alone, and then the parameters' are neither
// computed nor differentiated. The derivative as an op by itself has one in Python too.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../group_norm.h"
#include "fold.h"

namespace {

using namespace gk;

using Tensors = std::tuple<Tensor, Tensor, Tensor>;
using Parameter = optional<Tensor>;

// Whether stock's kernels, which the op's own would call for it, can be called at once: small norms are mostly calls.
bool is_plain(const Tensor& x) {
  return x.is_cpu() && x.dim() > 2 && !is_traced(x) && (x.is_contiguous() || x.is_contiguous(at::MemoryFormat::ChannelsLast));
}

// In the dtype of the statistics, which stock takes from the parameters: ones where there are none.
Tensor numbers(const Parameter& t, const Tensor& x, double value) {
  const auto dtype = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return t ? t->to(dtype) : at::full({x.size(1)}, value, x.options().dtype(dtype));
}

// The kernels, below what is differentiated here; that of the second derivative raises where it is differentiated itself.
Tensors call_norm(const Tensor& x, const Parameter& w, const Parameter& b, int64_t groups, double eps, bool centre) {
  at::AutoDispatchBelowADInplaceOrView below;
  const auto of_channels = [&](const Parameter& t) { return !t || (t->dim() == 1 && t->size(0) == x.size(1)); };
  const bool fits = is_plain(x) && groups > 0 && x.size(1) % groups == 0 && of_channels(w) && of_channels(b);  // else the op says what is wrong
  if (fits && gankernels::stock_takes(x, centre)) {
    const int64_t n = x.size(0), c = x.size(1);
    return at::native_group_norm(x, numbers(w, x, 1), numbers(b, x, 0), n, c, x.numel() / (n * c), groups, eps);
  }
  static const auto op =
      registered<Tensors(const Tensor&, const Parameter&, const Parameter&, int64_t, double, bool)>("gankernels::group_norm");
  return op.call(x, w, b, groups, eps, centre);
}

Tensors call_bwd(const Tensor& g, const Tensor& x, const Parameter& w, const Tensor& mean, const Tensor& rstd, int64_t groups,
                 bool centre, bool of_x, bool of_parameters) {
  at::AutoDispatchBelowADInplaceOrView below;
  if (is_plain(x) && g.strides() == x.strides() && gankernels::stock_derives(x, mean, rstd, centre)) {
    const int64_t n = x.size(0), c = x.size(1);
    return at::native_group_norm_backward(g, x, mean, rstd, numbers(w, x, 1), n, c, x.numel() / (n * c), groups,
                                          {true, of_parameters, of_parameters});  // see the op's own kernel
  }
  static const auto op = registered<Tensors(const Tensor&, const Tensor&, const Parameter&, const Tensor&, const Tensor&, int64_t, bool,
                                      bool, bool)>("gankernels::group_norm_bwd");
  return op.call(g, x, w, mean, rstd, groups, centre, of_x, of_parameters);
}

Tensors call_bwd_bwd(const Tensor& v, const Parameter& vw, const Parameter& vb, const Tensor& g, const Tensor& x,
                     const Parameter& w, const Tensor& mean, const Tensor& rstd, int64_t groups, bool centre, bool of_weight) {
  static const auto op =
      registered<Tensors(const Tensor&, const Parameter&, const Parameter&, const Tensor&, const Tensor&, const Parameter&, const Tensor&,
                   const Tensor&, int64_t, bool, bool)>("gankernels::group_norm_bwd_bwd");
  return op.call(v, vw, vb, g, x, w, mean, rstd, groups, centre, of_weight);
}

// Layer norm over the `trailing` last dimensions, `features` elements in all, is group norm of rows (R, features); 0 for group
// norm itself. Of channels_last images the rows are taken in memory order, and so are the parameters.
struct Norm {
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
    if (!t.defined() || trailing == 0) return optional_of(t);
    return (last ? t.permute({1, 2, 0}) : t).reshape({-1});
  }
  Tensor parameter_back(const Tensor& t, const Tensor& like) const {
    return (last ? t.view_as(like.permute({1, 2, 0})).permute({2, 0, 1}).contiguous() : t.view_as(like)).to(like.scalar_type());
  }

  Tensors bwd(const Tensor& g, const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& mean, const Tensor& rstd,
              std::array<bool, 3> of) const {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [gx, gw, gb] = call_bwd(rows(g), rows(x), parameter(w), mean, rstd, groups, centre, of[0], of[1] || of[2]);
    return {of[0] ? back(gx, x) : Tensor(), of[1] ? parameter_back(gw, w) : Tensor(), of[2] ? parameter_back(gb, b) : Tensor()};
  }
};

// Edges: grad, x, weight, bias. Its outputs are those asked for, of the gradients in x, weight and bias.
struct NormBackward : SavingNode {
  Norm norm;
  std::array<bool, 3> of;
  std::string name() const override { return "gankernels::NormBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor g = unpack(0), x = unpack(1), w = unpack(2), b = unpack(3), mean = unpack(4), rstd = unpack(5);
    Tensor v[3];
    for (int i = 0, next = 0; i < 3; ++i)
      if (of[i]) v[i] = grads[next++];
    variable_list out(4);
    if (!v[0].defined() && !v[1].defined() && !v[2].defined()) return out;
    const bool of_weight = w.defined() && wants(2) && wants_weights();
    const auto [gg, gx, gw] =
        call_bwd_bwd(norm.rows(v[0].defined() ? v[0] : at::zeros_like(x)), norm.parameter(v[1]), norm.parameter(v[2]),
                     norm.rows(g), norm.rows(x), norm.parameter(w), mean, rstd, norm.groups, norm.centre, of_weight);
    if (wants(0)) out[0] = norm.back(gg, g);
    if (wants(1)) out[1] = norm.back(gx, x);
    if (of_weight) out[2] = norm.parameter_back(gw, w);
    // as for the bias of a convolution: zero rather than absent below another layer
    if (b.defined() && wants(3) && wants(0)) out[3] = at::zeros_like(b);
    return out;
  }
};

// Edges: x, weight, bias.
struct NormNode : SavingNode {
  static constexpr auto kName = "gankernels::Norm";
  Norm norm;
  std::string name() const override { return kName; }

  variable_list apply(variable_list&& grads) override {
    const Tensor& g = grads[0];
    variable_list out(3);
    const std::array<bool, 3> of{wants(0), wants(1) && wants_weights(), wants(2)};
    if (!g.defined() || !(of[0] || of[1] || of[2])) return out;
    const Tensor x = unpack(0), w = unpack(1), b = unpack(2), mean = unpack(3), rstd = unpack(4);
    refuse_other_autograds({g, x, w, b});
    const auto [gx, gw, gb] = norm.bwd(g, x, w, b, mean, rstd, of);
    out = {gx, gw, gb};
    if (!need_gradient({g, x, w, b})) return out;
    auto node = node_of<NormBackward>({g, x, w, b});
    node->norm = norm;
    node->of = of;
    for (const Tensor& t : out)
      if (t.defined()) torch::autograd::set_history(t, node);
    node->save({g, x, w, b, mean, rstd});
    return out;
  }
};

Tensors normalised(const Tensor& x, const Parameter& w, const Parameter& b, const Norm& norm) {
  const Tensor weight = w.value_or(Tensor()), bias = b.value_or(Tensor());
  Tensor mean, rstd;
  const Tensor y = record<NormNode>(
      {x, weight, bias},
      [&] {
        Tensor rows;
        std::tie(rows, mean, rstd) =
            call_norm(norm.rows(x), norm.parameter(weight), norm.parameter(bias), norm.groups, norm.eps, norm.centre);
        return norm.back(rows, x);
      },
      [&](auto& node, const Tensor&) {
        node.norm = norm;
        node.save({x, weight, bias, mean, rstd});
      });
  return {y, mean, rstd};
}

// On a GPU autocast runs normalisations in float32; on the CPU they take what they get.
Tensor for_autocast(const Tensor& t) {
  const auto device = t.device().type();
  if (device != at::kCUDA || !at::autocast::is_autocast_enabled(device)) return t;
  return at::autocast::cached_cast(at::kFloat, t, device);
}

Parameter for_autocast(const Parameter& t) { return t ? Parameter(for_autocast(*t)) : t; }

Tensors group_norm(const Tensor& x, const Parameter& w, const Parameter& b, int64_t groups, double eps, bool centre) {
  return normalised(x, w, b, {.groups = groups, .eps = eps, .centre = centre});
}

Tensor fast_group_norm(const Tensor& x, const Parameter& w, const Parameter& b, int64_t groups, double eps) {
  return std::get<0>(group_norm(for_autocast(x), for_autocast(w), for_autocast(b), groups, eps, true));
}

Tensor fast_layer_norm(const Tensor& x_, const Parameter& w, const Parameter& b, at::IntArrayRef shape, double eps, bool centre) {
  const Tensor x = for_autocast(x_);
  const Norm norm{.trailing = int64_t(shape.size()), .features = c10::multiply_integers(shape), .eps = eps, .centre = centre,
                  .last = x.dim() == 4 && shape.size() == 3 && x.suggest_memory_format() == at::MemoryFormat::ChannelsLast};
  return std::get<0>(normalised(x, for_autocast(w), for_autocast(b), norm));
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) { m.impl("group_norm", group_norm); }

TORCH_LIBRARY_FRAGMENT(gankernels, m) {
  declare_keeps_rows(NormNode::kName);
  m.def("fast_group_norm(Tensor input, Tensor? weight, Tensor? bias, int groups, float eps) -> Tensor", fast_group_norm);
  m.def("fast_layer_norm(Tensor input, Tensor? weight, Tensor? bias, int[] shape, float eps, bool centre) -> Tensor",
        fast_layer_norm);
}

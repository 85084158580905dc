#include <Python.h>

#include "penalty.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

namespace gk {

namespace {

template <class Signature>
auto registered(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct PenaltyGradient : SavingNode {
  Penalty penalty;
  std::string name() const override { return "gankernels::PenaltyGradient"; }
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    static const auto op = registered<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                                 double, bool)>("gankernels::grad_norm_penalty_bwd_bwd");
    auto [grad, g] = op.call(grads[0], unpack(0), unpack(1), unpack(2), penalty.target, penalty.one_sided);
    return {grad * penalty.weight, g};
  }
};

struct NormPenalty : SavingNode {
  Penalty penalty;
  std::string name() const override { return "gankernels::NormPenalty"; }
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    return {penalty_gradient(grads[0], unpack(0), unpack(1), penalty)};
  }
};

// A call comes with the GIL when fake tensors run it; autograd's engine takes it itself, where a node is Python's.
struct ReleasedGil {
  PyThreadState* state = PyGILState_Check() ? PyEval_SaveThread() : nullptr;
  ~ReleasedGil() {
    if (state) PyEval_RestoreThread(state);
  }
};

Tensor input_gradient(const Tensor& score, const Tensor& x) {
  const ReleasedGil released;
  return torch::autograd::grad({score}, {x}, {at::ones_like(score)}, true, true, true)[0];
}

// The penalty on d sum(score) / dx, which is differentiated on the way.
std::tuple<Tensor, Tensor> input_gradient_penalty(const Tensor& score, const Tensor& x, double weight, double target,
                                                  bool one_sided, std::string_view op) {
  const Tensor grads = input_gradient(score, x);
  TORCH_CHECK(grads.defined(), "gankernels.", op, ": the critic's score must depend on its input, and its gradient there is absent: "
              "look for detach, .data or an input that is not used.");
  const Penalty penalty{weight, target, one_sided};
  Tensor norms;
  Tensor value = record<NormPenalty>(
      {grads},
      [&] {
        Tensor value;
        std::tie(value, norms) = penalty_of(grads, penalty);
        return value;
      },
      [&](auto& node, const Tensor&) {
        node.penalty = penalty;
        node.save({grads, norms});
      });
  return {value, norms};
}

}  // namespace

std::tuple<Tensor, Tensor> penalty_of(const Tensor& grads, const Penalty& penalty) {
  static const auto op = registered<std::tuple<Tensor, Tensor>(const Tensor&, double, bool)>("gankernels::grad_norm_penalty");
  auto [value, norms] = op.call(grads, penalty.target, penalty.one_sided);
  return {value * penalty.weight, norms};
}

Tensor penalty_gradient(const Tensor& grad, const Tensor& grads, const Tensor& norms, const Penalty& penalty) {
  static const auto op = registered<Tensor(const Tensor&, const Tensor&, const Tensor&, double, bool)>(
      "gankernels::grad_norm_penalty_bwd");
  Tensor scaled;
  return record<PenaltyGradient>(
      {grad, grads},
      [&] {
        scaled = grad * penalty.weight;
        return op.call(scaled, grads, norms, penalty.target, penalty.one_sided);
      },
      [&](auto& node, const Tensor&) {
        node.penalty = penalty;
        node.save({scaled, grads, norms});
      });
}

}  // namespace gk

TORCH_LIBRARY_FRAGMENT(gankernels, m) {
  m.def(
      "input_gradient_penalty(Tensor score, Tensor input, float weight, float target, bool one_sided, str op) -> (Tensor, Tensor)",
      gk::input_gradient_penalty);
}

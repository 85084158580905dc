#include <Python.h>

#include "penalty.h"

#include "fold.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

namespace gk {

namespace {

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
  // ones, but NaN where the score is: a piecewise-linear critic's gradient at a NaN would be finite
  return torch::autograd::grad({score}, {x}, {at::clamp(score.detach(), 1, 1)}, true, true, true)[0];
}

Tensor checked_input_gradient(const Tensor& score, const Tensor& x, std::string_view op) {
  const Tensor grads = input_gradient(score, x);
  TORCH_CHECK(grads.defined(), "gankernels.", op, ": the critic's score must depend on its input, and its gradient there is absent: "
              "look for detach, .data or an input that is not used.");
  return grads;
}

std::tuple<Tensor, Tensor> differentiable_penalty(const Tensor& grads, const Penalty& penalty) {
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

// The penalty on d sum(score) / dx, which is differentiated on the way. Where x is a leaf of the caller's own, nobody can ask for the
// penalty's gradient in it.
std::tuple<Tensor, Tensor> input_gradient_penalty(const Tensor& score, const Tensor& x, bool own_leaf, double weight, double target,
                                                  bool one_sided, std::string_view op) {
  const Tensor grads = checked_input_gradient(score, x, op);
  if (own_leaf) cut_off(score, x);
  return differentiable_penalty(grads, {weight, target, one_sided});
}

// ---------------------------------------------------------------------------------------------------------------------
// Scores and penalty with one backward for both (docs/regularised-loss.md); x is a leaf of the caller's own.
// ---------------------------------------------------------------------------------------------------------------------

// A stock node with parameters, and the adjoint d score / d output that arrived at it in the first backward. Times l' that is the loss's
// adjoint, and the node's own backward makes the loss's gradient of its parameters.
struct Parameters {
  NodePtr node;
  std::vector<size_t> edges;
  variable_list adjoints;
};

struct KeepAdjoints : torch::autograd::FunctionPreHook {
  variable_list* adjoints;
  explicit KeepAdjoints(variable_list* adjoints) : adjoints(adjoints) {}
  variable_list operator()(const variable_list& grads) override {
    for (const Tensor& g : grads) adjoints->push_back(g.defined() ? g.detach() : g);
    return grads;
  }
};

// Stands above the graph of the input's gradient. The engine calls it when all of the gradients in scores and penalty have
// arrived, and before any node below it: those find l' in the fold.
struct Regularized : SavingNode {
  Penalty penalty;
  FoldPtr fold;
  std::vector<Parameters> parameters;
  std::string name() const override { return "gankernels::Regularized"; }
  void release_variables() override {
    SavingNode::release_variables();
    parameters.clear();
  }
  variable_list apply(variable_list&& grads) override {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(), "gankernels.regularized_scores: scores and penalty are differentiable once, "
                                "and this backward has create_graph=True; use fold=False.");
    const Tensor g = unpack(0), norms = unpack(1);
    const Tensor &of_scores = grads[0], &of_penalty = grads[1];
    fold->slopes = of_scores.defined() ? of_scores.reshape({-1}) : Tensor();
    variable_list result{of_penalty.defined() ? penalty_gradient(of_penalty, g, norms, penalty) : Tensor()};
    for (const auto& layer : parameters) {
      variable_list adjoints;
      if (of_scores.defined())
        for (const Tensor& a : layer.adjoints) adjoints.push_back(a.defined() ? a * fold->rows(a) : a);
      const variable_list gradients =
          of_scores.defined() ? (*layer.node)(std::move(adjoints)) : variable_list(layer.node->num_outputs());
      for (size_t edge : layer.edges) result.push_back(gradients[edge]);
    }
    return result;
  }
};

std::tuple<Tensor, Tensor, Tensor> regularize(const Tensor& score, const Tensor& x, double weight, double target, bool one_sided,
                                              bool fold, std::string_view op) {
  const Critic critic = examine(score, x);
  const Penalty penalty{weight, target, one_sided};
  Tensor scores = score, value, norms;
  if (!fold || !critic.folds) {
    std::tie(value, norms) = differentiable_penalty(checked_input_gradient(score, x, op), penalty);
  } else {
    auto node = make_node<Regularized>();
    node->penalty = penalty;
    node->fold = c10::make_intrusive<Fold>();
    node->parameters.reserve(critic.steps.size());
    torch::autograd::edge_list edges(1);
    for (const Step& step : critic.steps) {
      if (auto* layer = dynamic_cast<FoldsWeights*>(step.node.get())) {
        layer->fold = node->fold;
      } else if (!step.parameters.empty()) {
        node->parameters.push_back({step.node, step.parameters, {}});
        step.node->add_pre_hook(std::make_unique<KeepAdjoints>(&node->parameters.back().adjoints));
        for (size_t edge : step.parameters) edges.push_back(step.node->next_edge(edge));
      }
    }
    const auto restore = [&] {
      for (const Step& step : critic.steps)
        if (auto* layer = dynamic_cast<FoldsWeights*>(step.node.get())) layer->fold.reset();
      for (const auto& layer : node->parameters) layer.node->pre_hooks().pop_back();
    };
    Tensor grads;
    try {
      grads = checked_input_gradient(score, x, op);
    } catch (...) {
      restore();
      throw;
    }
    restore();
    {
      at::AutoDispatchBelowADInplaceOrView below;
      std::tie(value, norms) = penalty_of(grads, penalty);
      scores = score.clone();
    }
    edges[0] = grads.requires_grad() ? torch::autograd::impl::gradient_edge(grads) : Edge();
    node->set_next_edges(std::move(edges));
    torch::autograd::set_history(scores, node);
    torch::autograd::set_history(value, node);
    node->save({grads, norms});
  }
  cut_off(score, x);
  return {scores, value, norms};
}

// For gk.explain: of each node between x and score its name, its number (they count up in the order of the forward pass), and why the
// fold cannot pass it (empty when it can); last, the same of the score.
std::tuple<std::vector<std::string>, std::vector<int64_t>, std::vector<std::string>> examine_critic(const Tensor& score,
                                                                                                   const Tensor& x) {
  const Critic critic = examine(score, x);
  std::vector<std::string> names, why_not;
  std::vector<int64_t> numbers;
  for (const Step& step : critic.steps) {
    names.push_back(step.node->name());
    numbers.push_back(int64_t(step.node->sequence_nr()));
    why_not.push_back(step.why_not);
  }
  why_not.push_back(critic.why_not);
  return {names, numbers, why_not};
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
      "input_gradient_penalty(Tensor score, Tensor input, bool own_leaf, float weight, float target, bool one_sided, str op) "
      "-> (Tensor, Tensor)",
      gk::input_gradient_penalty);
  m.def(
      "regularize(Tensor score, Tensor input, float weight, float target, bool one_sided, bool fold, str op) "
      "-> (Tensor, Tensor, Tensor)",
      gk::regularize);
  m.def("examine_critic(Tensor score, Tensor input) -> (str[], int[], str[])", gk::examine_critic);
  m.def("compiled_between(Tensor score, Tensor input) -> bool", gk::compiled_between);
  m.def("declare_keeps_rows(str node_name) -> ()", [](std::string_view name) { gk::declare_keeps_rows(std::string(name)); });
}

// Autograd nodes written as PyTorch's own generated ones are: the saved tensors are members, and nothing is boxed. Half the cost of a
// torch::autograd::Function, which for small layers is most of what a layer costs.
#pragma once

#include <ATen/ATen.h>
#include <ATen/FuncTorchTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

namespace gk {

using at::IntArrayRef;
using at::Tensor;
using std::optional;
using torch::autograd::Edge;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

template <class State>
using StatePtr = c10::intrusive_ptr<State>;

// Process-wide, since autograd runs a GPU's backward on threads of its own.
inline std::atomic<int> weight_gradients_disabled{0};
inline bool wants_weights() { return weight_gradients_disabled.load(std::memory_order_relaxed) == 0; }

// std::shared_ptr or, in newer PyTorch, c10::intrusive_ptr
using NodePtr = decltype(Edge::function);

template <class N>
auto make_node() {
  if constexpr (std::is_same_v<NodePtr, std::shared_ptr<Node>>) {
    return std::make_shared<N>();
  } else {
    return c10::make_intrusive<N>();
  }
}

inline optional<Tensor> optional_of(const Tensor& t) { return t.defined() ? optional<Tensor>(t) : std::nullopt; }

// The op of a name, to call(); `Signature` is that of its schema.
template <class Signature>
auto registered(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// A node and the tensors it saved. `output` is the one among them that the node itself made: saved without a cycle.
struct SavingNode : Node {
  std::vector<SavedVariable> saved;

  void save(const variable_list& tensors, const Tensor& output = {}) {
    saved.reserve(tensors.size());
    for (const Tensor& t : tensors) saved.emplace_back(t, output.defined() && t.is_same(output));
  }
  Tensor unpack(size_t i) { return saved[i].unpack(getptr()); }
  void release_variables() override {
    for (auto& s : saved) s.reset_data();
  }
  bool wants(size_t i) const { return next_edge(i).is_valid() && task_should_compute_output(i); }
};

inline bool has_hooks(Node& node) {
  return !node.pre_hooks().empty() || !node.tensor_pre_hooks().empty() || !node.post_hooks().empty() ||
         !node.retains_grad_hooks().empty();
}

inline void refuse_other_autograds(std::initializer_list<Tensor> inputs) {
  if (const auto& tls = at::functorch::functorchTLSAccessor()) tls->checkSupportsCppAutogradFunction();
  for (const Tensor& t : inputs)
    TORCH_CHECK(!torch::autograd::isFwGradDefined(t), "gankernels: forward-mode derivatives are not implemented.");
}

// Whether somebody looks at the calls that are made: torch.compile, a dispatch mode, a subclass. They see stock's. So does a gradient of
// zeros that has no memory, as the derivative of sgn is.
inline bool is_traced(const Tensor& t) {
  using c10::DispatchKey;
  return c10::impl::dispatch_mode_enabled() ||
         t.key_set().has_any(c10::DispatchKeySet({DispatchKey::Python, DispatchKey::Functionalize, DispatchKey::ZeroTensor}));
}

inline bool need_gradient(std::initializer_list<Tensor> inputs) {
  return at::GradMode::is_enabled() &&
         std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.defined() && t.requires_grad(); });
}

// A node with an edge to each of `inputs`.
template <class N>
auto node_of(std::initializer_list<Tensor> inputs) {
  auto node = make_node<N>();
  torch::autograd::edge_list edges;
  edges.reserve(inputs.size());
  for (const Tensor& t : inputs) edges.push_back(t.defined() ? torch::autograd::impl::gradient_edge(t) : Edge());
  node->set_next_edges(std::move(edges));
  return node;
}

// Runs compute() below autograd; where one of `inputs` needs a gradient, records it as an N with an edge to each (fill(node, y)).
template <class N, class Compute, class Fill>
Tensor record(std::initializer_list<Tensor> inputs, const Compute& compute, const Fill& fill) {
  refuse_other_autograds(inputs);
  const Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return compute();
  }();
  if (!need_gradient(inputs)) return y;
  auto node = node_of<N>(inputs);
  torch::autograd::set_history(y, node);
  fill(*node, y);
  return y;
}

}  // namespace gk

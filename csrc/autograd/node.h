// What the C++ autograd nodes share.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <atomic>

namespace gankernels {

template <class State>
using StatePtr = c10::intrusive_ptr<State>;

// A node's options, an object shared by all nodes of a call, and its tensors. Absent gradients stay absent.
template <class State>
void keep(torch::autograd::AutogradContext* ctx, const StatePtr<State>& state, const torch::autograd::variable_list& saved) {
  ctx->set_materialize_grads(false);
  ctx->save_for_backward(saved);
  ctx->saved_data["state"] = c10::IValue::make_capsule(state);
}

template <class State>
StatePtr<State> kept(torch::autograd::AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<State>(ctx->saved_data["state"].toCapsule());
}

// Process-wide, since autograd runs a GPU's backward on threads of its own.
inline std::atomic<int> weight_gradients_disabled{0};
inline bool weight_gradients_enabled() { return weight_gradients_disabled.load(std::memory_order_relaxed) == 0; }

}  // namespace gankernels

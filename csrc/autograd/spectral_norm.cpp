// W / sigma and its derivative as autograd nodes (formulas in gankernels/ops/spectral_norm.py). In Python a node with lists of tensors
// takes 220 us, forward and backward: as long as the kernels need for the discriminator of 32x32 images.
#include "nodes.h"

#include <torch/library.h>

namespace {

using namespace gk;
using at::TensorList;
using Tensors = std::vector<Tensor>;

Tensors normalize_bwd(TensorList grads, TensorList weights, const Tensor& uv, const Tensor& sigma, IntArrayRef dims,
                      IntArrayRef layers);

// uv and sigma, then the tensors of the lists.
struct OfLayers : SavingNode {
  std::vector<int64_t> dims, layers;  // layers: those of its outputs
  Tensors unpack_from(size_t first, size_t count) {
    Tensors tensors;
    for (size_t i = first; i < first + count; ++i) tensors.push_back(unpack(i));
    return tensors;
  }
};

struct NormalizeBackward : OfLayers {
  std::string name() const override { return "gankernels::SpectralNormalizeBackward"; }
  variable_list apply(variable_list&& grad_grads) override {
    const size_t n = layers.size(), all = saved.size() - 2 - n;
    variable_list result(n + all);
    std::vector<int64_t> places, chosen;
    Tensors vs, grads;
    for (size_t k = 0; k < n; ++k)
      if (grad_grads[k].defined()) {
        places.push_back(int64_t(k));
        chosen.push_back(layers[k]);
        vs.push_back(grad_grads[k]);
        grads.push_back(unpack(2 + k));
      }
    if (places.empty()) return result;
    static const auto op = registered<std::tuple<Tensors, Tensors>(TensorList, TensorList, TensorList, const Tensor&, const Tensor&,
                                                                   IntArrayRef, IntArrayRef)>("gankernels::spectral_normalize_bwd_bwd");
    auto [of_grads, of_weights] = op.call(vs, grads, unpack_from(2 + n, all), unpack(0), unpack(1), dims, chosen);
    for (size_t i = 0; i < places.size(); ++i) {
      result[places[i]] = of_grads[i];
      result[n + chosen[i]] = of_weights[i];
    }
    return result;
  }
};

struct Normalize : OfLayers {
  std::string name() const override { return "gankernels::SpectralNormalize"; }
  variable_list apply(variable_list&& grads) override {
    variable_list result(num_outputs());
    std::vector<int64_t> chosen;
    Tensors given;
    for (size_t k = 0; k < layers.size(); ++k)
      if (grads[k].defined() && wants(layers[k])) {
        chosen.push_back(layers[k]);
        given.push_back(grads[k].layout() == at::kStrided ? grads[k] : grads[k].to_dense());  // an embedding's may be sparse
      }
    if (chosen.empty()) return result;
    const Tensors of_weights = normalize_bwd(given, unpack_from(2, result.size()), unpack(0), unpack(1), dims, chosen);
    for (size_t i = 0; i < chosen.size(); ++i) result[chosen[i]] = of_weights[i];
    return result;
  }
};

bool needs_gradient(TensorList tensors) {
  return at::GradMode::is_enabled() && std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.requires_grad(); });
}

// A node for outputs of these layers, with an edge to each of the inputs.
template <class N>
auto node_of(const Tensors& inputs, IntArrayRef dims, IntArrayRef layers) {
  auto node = make_node<N>();
  node->dims = dims.vec();
  node->layers = layers.vec();
  torch::autograd::edge_list edges;
  for (const Tensor& t : inputs) edges.push_back(torch::autograd::impl::gradient_edge(t));
  node->set_next_edges(std::move(edges));
  return node;
}

void keep(OfLayers& node, const Tensor& uv, const Tensor& sigma, const Tensors& inputs) {
  Tensors tensors{uv, sigma};
  tensors.insert(tensors.end(), inputs.begin(), inputs.end());
  node.save(tensors);
}

Tensors normalize(TensorList weights, const Tensor& uv, const Tensor& sigma, IntArrayRef dims) {
  for (const Tensor& w : weights) refuse_other_autograds({w});
  static const auto op =
      registered<Tensors(TensorList, const Tensor&, const Tensor&, IntArrayRef)>("gankernels::spectral_normalize");
  Tensors out;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    out = op.call(weights, uv, sigma, dims);
  }
  if (needs_gradient(weights)) {
    std::vector<int64_t> layers;
    for (size_t i = 0; i < weights.size(); ++i)
      if (weights[i].requires_grad()) layers.push_back(int64_t(i));
    auto node = node_of<Normalize>(weights.vec(), dims, layers);
    for (const int64_t i : layers) torch::autograd::set_history(out[i], node);
    keep(*node, uv, sigma, weights.vec());
  }
  return out;
}

Tensors normalize_bwd(TensorList grads, TensorList weights, const Tensor& uv, const Tensor& sigma, IntArrayRef dims,
                      IntArrayRef layers) {
  static const auto op = registered<Tensors(TensorList, TensorList, const Tensor&, const Tensor&, IntArrayRef, IntArrayRef)>(
      "gankernels::spectral_normalize_bwd");
  Tensors out;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    out = op.call(grads, weights, uv, sigma, dims, layers);
  }
  if (needs_gradient(grads) || needs_gradient(weights)) {
    Tensors inputs = grads.vec();
    inputs.insert(inputs.end(), weights.begin(), weights.end());
    auto node = node_of<NormalizeBackward>(inputs, dims, layers);
    for (const Tensor& t : out) torch::autograd::set_history(t, node);
    keep(*node, uv, sigma, inputs);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) {
  m.impl("spectral_normalize", normalize);
  m.impl("spectral_normalize_bwd", normalize_bwd);
}

// Launchers of spectral normalisation: an iteration is 4 launches for the whole group (up to 507 layers), W / sigma
// one, a derivative three; see spectral_norm.cuh.
#include "spectral_norm.cuh"

#include <climits>

#include "../spectral_norm.h"
#include "launch.h"

namespace gankernels::cuda {
namespace {

struct Stream {
  const char* op;
  cudaStream_t stream;
  template <class Kernel, class... Arguments>
  void operator()(Kernel kernel, dim3 grid, int threads, const Arguments&... arguments) const {
    kernel<<<grid, threads, 0, stream>>>(arguments...);
    check_launch(op);
  }
};

// The kernels know columns in order and those of channels_last weights. Weights of other layouts take part as
// contiguous copies.
struct Native {
  const Layers given;
  Layers layers;

  Native(const char* op, const TensorList& weights, const std::vector<int64_t>& dims)
      : given(layers_of(op, weights, dims)) {
    TensorList ordered = given.weights;
    for (int64_t i = 0; i < given.count(); ++i) {
      const Matrix& m = given.matrices[i];
      GK_CHECK(m.rows < INT_MAX / 2 && m.columns < INT_MAX / 2 && m.slice() < INT_MAX / 2, op, ": weights[", i,
               "] must have less than 2^30 rows and columns, got shape ", shape_text(weights[i].sizes()));
      if (m.leading() == 0) ordered[i] = as_contiguous(ordered[i]);
    }
    layers = layers_of(op, ordered, dims);
  }

  // `computed` in the layouts of the weights as they were given
  TensorList in_given_layouts(const TensorList& computed, const std::vector<int64_t>& chosen) const {
    TensorList out;
    for (size_t i = 0; i < computed.size(); ++i) out.push_back(in_layout_of(given.weights[chosen[i]], computed[i]));
    return out;
  }
};

std::vector<int64_t> all_of(const Layers& layers) {
  std::vector<int64_t> all(layers.count());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

TensorList outputs_like(const Layers& layers, const std::vector<int64_t>& chosen) {
  TensorList out;
  for (const int64_t layer : chosen) out.push_back(torch::stable::empty_like(layers.weights[layer]));
  return out;
}

template <class A>
A* elements(const Tensor& t) {
  return static_cast<A*>(t.mutable_data_ptr());
}

std::tuple<Tensor, Tensor> spectral_norm_power_iteration_(TensorList weights, TensorList u, TensorList v,
                                                          std::vector<int64_t> dims, int64_t iterations, double eps) {
  const char* op = "spectral_norm_power_iteration_";
  const Native native(op, weights, dims);
  const Layers& layers = native.layers;
  check_iteration(op, layers, u, v, iterations, eps);
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  const auto dtype = accumulate_type(weights[0].scalar_type());
  Tensor uv = torch::stable::new_empty(weights[0], std::vector<int64_t>{layers.uv_length}, dtype);
  Tensor sigma = torch::stable::new_empty(weights[0], std::vector<int64_t>{layers.count()}, dtype);
  std::vector<SpectralLayer> entries;
  for (int64_t i = 0; i < layers.count(); ++i) {
    const Matrix& m = layers.matrices[i];
    entries.push_back({layers.weights[i].const_data_ptr(), u[i].mutable_data_ptr(), v[i].mutable_data_ptr(), 0,
                       layers.u_at[i], static_cast<int>(m.rows), static_cast<int>(m.slices), static_cast<int>(m.inner),
                       static_cast<int>(m.leading())});
  }
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const int64_t length = place_in_workspace<A>(entries);
    Tensor workspace = torch::stable::new_empty(weights[0], std::vector<int64_t>{length}, dtype);
    launch_power_iteration<T>(entries, elements<A>(workspace), elements<A>(uv), elements<A>(sigma), iterations, eps,
                              Stream{op, current_stream(weights[0])});
  });
  return {uv, sigma};
}

TensorList spectral_normalize(TensorList weights, Tensor uv, Tensor sigma, std::vector<int64_t> dims) {
  const char* op = "spectral_normalize";
  const Layers layers = layers_of(op, weights, dims);
  check_saved(op, layers, uv, sigma);
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  TensorList out = outputs_like(layers, all_of(layers));
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    std::vector<TensorEntry<kNormalizeColumns>> entries;
    for (int64_t i = 0; i < layers.count(); ++i)
      entries.push_back({{const_cast<void*>(layers.weights[i].const_data_ptr()), out[i].mutable_data_ptr(),
                          elements<accumulate_t<T>>(sigma) + i},
                         layers.weights[i].numel()});
    const Stream launch{op, current_stream(weights[0])};
    for_each_table<T>(entries, [&]<int kCapacity>(const TensorTable<kNormalizeColumns, kCapacity>& table, int blocks) {
      launch(spectral_normalize_kernel<T, kCapacity>, blocks, kThreads, table);
    });
  });
  return out;
}

template <bool kSecond>
std::tuple<TensorList, TensorList> derivative(const char* op, const TensorList& grad_grads_, const TensorList& grads_,
                                              const TensorList& weights, Tensor uv, Tensor sigma,
                                              const std::vector<int64_t>& dims, const std::vector<int64_t>& chosen) {
  const Native native(op, weights, dims);
  const Layers& layers = native.layers;
  check_saved(op, layers, uv, sigma);
  check_chosen(op, layers, chosen);
  const TensorList grad_grads =
      like_weights(op, "grad_grads", layers, kSecond ? chosen : std::vector<int64_t>{}, grad_grads_);
  const TensorList grads = like_weights(op, "grads", layers, chosen, grads_);
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  TensorList grads_out = kSecond ? outputs_like(layers, chosen) : TensorList{},
             weights_out = outputs_like(layers, chosen);
  std::vector<SpectralGradient> entries;
  for (size_t i = 0; i < chosen.size(); ++i) {
    const int64_t layer = chosen[i];
    const Matrix& m = layers.matrices[layer];
    entries.push_back({kSecond ? grad_grads[i].const_data_ptr() : nullptr, grads[i].const_data_ptr(),
                       layers.weights[layer].const_data_ptr(), kSecond ? grads_out[i].mutable_data_ptr() : nullptr,
                       weights_out[i].mutable_data_ptr(), layers.u_at[layer], m.elements(), static_cast<int>(layer),
                       static_cast<int>(m.rows), static_cast<int>(m.slices), static_cast<int>(m.inner),
                       static_cast<int>(m.leading())});
  }
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    Tensor workspace = torch::stable::new_empty(uv, std::vector<int64_t>{gradient_workspace<T>(entries)});
    launch_gradients<T, kSecond>(entries, elements<A>(workspace), elements<A>(uv), elements<A>(sigma),
                                 Stream{op, current_stream(weights[0])});
  });
  return {native.in_given_layouts(grads_out, chosen), native.in_given_layouts(weights_out, chosen)};
}

TensorList spectral_normalize_bwd(TensorList grads, TensorList weights, Tensor uv, Tensor sigma,
                                  std::vector<int64_t> dims, std::vector<int64_t> chosen) {
  return std::get<1>(derivative<false>("spectral_normalize_bwd", {}, grads, weights, uv, sigma, dims, chosen));
}

std::tuple<TensorList, TensorList> spectral_normalize_bwd_bwd(TensorList grad_grads, TensorList grads,
                                                              TensorList weights, Tensor uv, Tensor sigma,
                                                              std::vector<int64_t> dims, std::vector<int64_t> chosen) {
  return derivative<true>("spectral_normalize_bwd_bwd", grad_grads, grads, weights, uv, sigma, dims, chosen);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CUDA, m) {
  m.impl("spectral_norm_power_iteration_", TORCH_BOX(&spectral_norm_power_iteration_));
  m.impl("spectral_normalize", TORCH_BOX(&spectral_normalize));
  m.impl("spectral_normalize_bwd", TORCH_BOX(&spectral_normalize_bwd));
  m.impl("spectral_normalize_bwd_bwd", TORCH_BOX(&spectral_normalize_bwd_bwd));
}

}  // namespace gankernels::cuda

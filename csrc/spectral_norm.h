// Spectral normalisation: what the CPU and the CUDA kernels agree on. How a weight's memory is a matrix, where u and v
// of a layer are in uv, and the checks.
#pragma once

#include <cmath>
#include <numeric>

#include "multi_tensor.h"

namespace gankernels {

// A dense weight in memory is (A, O, B): O the rows of the matrix, A * B its columns in some order.
struct Matrix {
  int64_t rows, columns;
  int64_t slices, inner;  // A, B
  int64_t elements() const { return rows * columns; }
  int64_t slice() const { return rows * inner; }
  bool whole_rows() const { return slices == 1; }

  std::vector<int64_t> sizes,
      strides;  // of the columns' dimensions in memory order: stride is what a step adds to the column

  // The column at each place in memory; empty when they are in order.
  std::vector<int64_t> column_map() const {
    if (leading() == columns) return {};
    std::vector<int64_t> map{0};
    for (size_t d = 0; d < sizes.size(); ++d) {
      std::vector<int64_t> next;
      next.reserve(map.size() * sizes[d]);
      for (const int64_t at : map)
        for (int64_t k = 0; k < sizes[d]; ++k) next.push_back(at + k * strides[d]);
      map = std::move(next);
    }
    return map;
  }

  // Where place m in memory holds column (m % q) * (columns / q) + m / q, that q: `columns` for columns in order, the
  // input channels of a channels_last convolution; 0 for other orders.
  int64_t leading() const {
    if (std::is_sorted(strides.rbegin(), strides.rend())) return columns;
    const auto turn = std::max_element(strides.begin(), strides.end());
    const bool rotated = std::is_sorted(strides.rend() - (turn - strides.begin()), strides.rend()) &&
                         std::is_sorted(strides.rbegin(), strides.rbegin() + (strides.end() - turn)) &&
                         strides.front() < strides.back();
    if (!rotated) return 0;
    const auto first = sizes.begin() + (turn - strides.begin());
    return std::accumulate(first, sizes.end(), int64_t{1}, std::multiplies<>());
  }
};

inline Matrix matrix_of(const Tensor& weight, int64_t dim) {
  const auto sizes = weight.sizes(), strides = weight.strides();
  Matrix m{sizes[dim], 1, 1, 1, {}, {}};
  std::vector<int64_t> order, column_strides(sizes.size());
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    if (i == dim) continue;
    column_strides[i] = m.columns;
    m.columns *= sizes[i];
    if (sizes[i] != 1) order.insert(order.begin(), i);
  }
  if (weight.numel() == 0) return {m.rows, m.columns, 1, m.columns, {}, {}};
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });
  for (const int64_t i : order) {
    (m.rows == 1 || strides[i] < strides[dim] ? m.inner : m.slices) *= sizes[i];
    m.sizes.push_back(sizes[i]);
    m.strides.push_back(column_strides[i]);
  }
  return m;
}

// All layers of a call.
struct Layers {
  TensorList weights;  // dense
  std::vector<Matrix> matrices;
  std::vector<int64_t> u_at, v_at;  // in uv
  int64_t uv_length = 0;

  int64_t count() const { return static_cast<int64_t>(weights.size()); }
};

inline Layers layers_of(const char* op, const TensorList& weights, const std::vector<int64_t>& dims) {
  GK_CHECK(!weights.empty(), op, ": weights must not be empty");
  GK_CHECK(dims.size() == weights.size(), op, ": dims must have one entry per weight, ", weights.size(), ", got ",
           dims.size());
  Layers layers;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    GK_CHECK(is_floating(w.scalar_type()), op, ": weights[", i, "] must be float64, float32, bfloat16 or float16, got ",
             dtype_text(w));
    GK_CHECK(same_device(w, weights[0]), op, ": weights must be on one device, and weights[", i,
             "] is on another than weights[0]");
    GK_CHECK(w.dim() >= 2, op, ": weights[", i, "] must have 2 or more dimensions, got shape ", shape_text(w.sizes()));
    GK_CHECK(dims[i] >= 0 && dims[i] < w.dim(), op, ": dims[", i, "] must be in [0, ", w.dim(), "), got ", dims[i]);
    GK_CHECK(w.scalar_type() == weights[0].scalar_type(), op, ": weights must have one dtype, got ",
             dtype_text(weights[0]), " and ", dtype_text(w));
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    layers.weights.push_back(is_dense(weights[i]) ? weights[i] : as_contiguous(weights[i]));
    layers.matrices.push_back(matrix_of(layers.weights[i], dims[i]));
    const Matrix& m = layers.matrices[i];
    layers.u_at.push_back(layers.uv_length);
    layers.v_at.push_back(layers.uv_length + m.rows);
    layers.uv_length += m.rows + m.columns;
  }
  return layers;
}

inline void check_vector(const char* op, const std::string& name, const Tensor& t, const Tensor& weight,
                         ScalarType dtype, int64_t length) {
  GK_CHECK(same_device(t, weight), op, ": ", name, " must be on the device of the weights");
  GK_CHECK(t.dim() == 1 && t.size(0) == length && t.is_contiguous() && t.scalar_type() == dtype, op, ": ", name,
           " must be a contiguous ", torch::headeronly::toString(dtype), " tensor of shape (", length, ",), got ",
           dtype_text(t), " of shape ", shape_text(t.sizes()));
}

inline void check_iteration(const char* op, const Layers& layers, const TensorList& u, const TensorList& v,
                            int64_t iterations, double eps) {
  GK_CHECK(iterations >= 0, op, ": iterations must be >= 0, got ", iterations);
  GK_CHECK(eps >= 0 && std::isfinite(eps), op, ": eps must be finite and >= 0, got ", eps);
  GK_CHECK(u.size() == layers.weights.size() && v.size() == layers.weights.size(), op,
           ": u and v must have one tensor per weight, ", layers.count(), ", got ", u.size(), " and ", v.size());
  for (int64_t i = 0; i < layers.count(); ++i) {
    const Tensor& w = layers.weights[i];
    check_vector(op, "u[" + std::to_string(i) + "]", u[i], w, w.scalar_type(), layers.matrices[i].rows);
    check_vector(op, "v[" + std::to_string(i) + "]", v[i], w, w.scalar_type(), layers.matrices[i].columns);
  }
}

inline void check_saved(const char* op, const Layers& layers, Tensor& uv, Tensor& sigma) {
  const Tensor& w = layers.weights[0];
  const ScalarType dtype = accumulate_type(w.scalar_type());
  uv = as_contiguous(uv);
  sigma = as_contiguous(sigma);
  check_vector(op, "uv", uv, w, dtype, layers.uv_length);
  check_vector(op, "sigma", sigma, w, dtype, layers.count());
}

inline void check_chosen(const char* op, const Layers& layers, const std::vector<int64_t>& chosen) {
  for (const int64_t layer : chosen)
    GK_CHECK(layer >= 0 && layer < layers.count(), op, ": layers must be in [0, ", layers.count(), "), got ", layer);
}

// Gradients of the chosen layers, in the memory order of their weights.
inline TensorList like_weights(const char* op, const char* name, const Layers& layers,
                               const std::vector<int64_t>& chosen, const TensorList& tensors) {
  GK_CHECK(tensors.size() == chosen.size(), op, ": ", name, " must have one tensor per entry of layers, ",
           chosen.size(), ", got ", tensors.size());
  TensorList out;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& w = layers.weights[chosen[i]];
    GK_CHECK(same_device(tensors[i], w), op, ": ", name, "[", i, "] must be on the device of the weights");
    check_same_shape(op, name, tensors[i], "its weight", w);
    out.push_back(in_layout_of(w, tensors[i]));
  }
  return out;
}

}  // namespace gankernels

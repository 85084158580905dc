// Spectral normalisation: what the CPU and the CUDA kernels agree on. How a weight's memory is a matrix, and the checks.
#pragma once

#include <cmath>

#include "multi_tensor.h"

namespace gankernels {

// Where (A, O, B) is in a dense weight's memory.
struct Matrix {
  int64_t rows, columns;
  int64_t slices, slice;         // A, and the elements O * B of each
  int64_t inner;                 // B
  std::vector<int64_t> column;   // the column at each place in memory; empty when they are in order
  bool whole_rows() const { return slices == 1; }
};

inline Matrix matrix_of(const Tensor& weight, int64_t dim) {
  const auto sizes = weight.sizes(), strides = weight.strides();
  const int64_t rows = sizes[dim];
  int64_t columns = 1;
  std::vector<int64_t> order, column_strides(sizes.size(), 0);
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1, stride = 1; i >= 0; --i) {
    if (i == dim) continue;
    column_strides[i] = stride;
    stride *= sizes[i];
    columns *= sizes[i];
  }
  for (size_t i = 0; i < sizes.size(); ++i)
    if (static_cast<int64_t>(i) != dim && sizes[i] != 1) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });
  int64_t inner = 1;
  for (const int64_t i : order)
    if (rows != 1 && strides[i] < strides[dim]) inner *= sizes[i];
  if (rows == 1) inner = columns;
  Matrix m{rows, columns, inner ? columns / inner : 1, rows * inner, std::max<int64_t>(1, inner), {}};
  if (weight.numel() && !std::is_sorted(order.begin(), order.end())) {
    m.column.assign(1, 0);
    m.column.reserve(columns);
    for (const int64_t i : order) {
      const std::vector<int64_t> outer = std::move(m.column);
      m.column.clear();
      m.column.reserve(columns);
      for (const int64_t at : outer)
        for (int64_t k = 0; k < sizes[i]; ++k) m.column.push_back(at + k * column_strides[i]);
    }
  }
  return m;
}

}  // namespace gankernels

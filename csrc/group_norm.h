// When stock's CPU kernels take a group norm: asked by the op's kernel, and by its autograd node, which then calls them at once. Tensors
// are those of the stable ABI or libtorch's.
#pragma once

#include <cmath>
#include <cstdint>

namespace gankernels {

// Whether pixels stand in memory row by row, as stock wants them, be there channels between them or not.
template <class Tensor>
bool pixels_are_in_order(const Tensor& x) {
  int64_t next = 0;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) == 1) continue;
    if (next != 0 && x.stride(d) != next) return false;
    next = x.stride(d) * x.size(d);
  }
  return true;
}

// Stock's kernels are faster where there are pixels.
template <class Tensor>
bool stock_takes(const Tensor& x, bool centre) {
  return centre && x.numel() > x.size(0) * x.size(1) && (x.dim() == 4 || x.size(1) == 1 || x.stride(1) != 1) && pixels_are_in_order(x);
}

// Stock's derivative takes the sum of g (x - mean) for a difference of two sums, which loses digits where a mean outweighs the
// deviation from it. Both statistics are contiguous, in A.
template <class A, class Tensor>
bool means_are_small(const Tensor& mean, const Tensor& rstd) {
  const A *m = static_cast<const A*>(mean.const_data_ptr()), *r = static_cast<const A*>(rstd.const_data_ptr());
  bool small = true;
  for (int64_t g = 0; g < mean.numel(); ++g) small &= std::abs(m[g] * r[g]) <= A(1);
  return small;
}

template <class Tensor>
bool stock_derives(const Tensor& x, const Tensor& mean, const Tensor& rstd, bool centre) {
  if (!stock_takes(x, centre)) return false;
  return mean.element_size() == sizeof(double) ? means_are_small<double>(mean, rstd) : means_are_small<float>(mean, rstd);
}

}  // namespace gankernels

// x = eps * real + (1 - eps) * fake with one eps per sample, and its transpose: one pass over memory each.
#include "../common.h"
#include "vec.h"

namespace gankernels {
namespace {

template <class T, class A>
GK_MULTIVERSION void interpolate_chunk(const T* real, const T* fake, T* x, int64_t n, A eps) {
  for (int64_t i = 0; i < n; ++i) x[i] = T(eps * A(real[i]) + (A(1) - eps) * A(fake[i]));
}

template <class T, class A>
GK_MULTIVERSION void interpolate_bwd_chunk(const T* grad, T* real_grad, T* fake_grad, int64_t n, A eps) {
  for (int64_t i = 0; i < n; ++i) {
    real_grad[i] = T(eps * A(grad[i]));
    fake_grad[i] = T((A(1) - eps) * A(grad[i]));
  }
}

void check_eps(const char* op, const Tensor& eps, const Tensor& x) {
  check_cpu(op, "eps", eps);
  GK_CHECK(x.dim() >= 1, op, ": expected at least one dimension, the batch, got a scalar");
  GK_CHECK(eps.dim() == 1 && eps.size(0) == x.size(0), op, ": eps must have shape (N,) = (", x.size(0), ",), got ",
           shape_text(eps.sizes()));
  GK_CHECK(eps.scalar_type() == accumulate_type(x.scalar_type()), op, ": eps must be ",
           torch::headeronly::toString(accumulate_type(x.scalar_type())), ", got ",
           torch::headeronly::toString(eps.scalar_type()));
}

Tensor interpolate(const Tensor& real_, const Tensor& fake_, const Tensor& eps_) {
  const char* op = "interpolate";
  check_cpu(op, "fake", fake_);
  check_same_shape(op, "fake", fake_, "real", real_);
  check_eps(op, eps_, real_);
  const Tensor real = samples_first(real_), fake = in_layout_of(real, fake_), eps = as_contiguous(eps_);
  Tensor x = torch::stable::empty_like(real);
  const int64_t samples = x.size(0), length = samples ? x.numel() / samples : 0;
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    for_each_chunk(samples, length, [&](int64_t i, int64_t begin, int64_t end) {
      const int64_t at = i * length + begin;
      interpolate_chunk(data<T>(real) + at, data<T>(fake) + at, mutable_data<T>(x) + at, end - begin,
                        data<accumulate_t<T>>(eps)[i]);
    });
  });
  return x;
}

std::tuple<Tensor, Tensor> interpolate_bwd(const Tensor& grad_, const Tensor& eps_) {
  const char* op = "interpolate_bwd";
  check_eps(op, eps_, grad_);
  const Tensor grad = samples_first(grad_), eps = as_contiguous(eps_);
  Tensor real_grad = torch::stable::empty_like(grad), fake_grad = torch::stable::empty_like(grad);
  const int64_t samples = grad.size(0), length = samples ? grad.numel() / samples : 0;
  dispatch_floating(op, grad.scalar_type(), [&]<class T>() {
    for_each_chunk(samples, length, [&](int64_t i, int64_t begin, int64_t end) {
      const int64_t at = i * length + begin;
      interpolate_bwd_chunk(data<T>(grad) + at, mutable_data<T>(real_grad) + at, mutable_data<T>(fake_grad) + at,
                            end - begin, data<accumulate_t<T>>(eps)[i]);
    });
  });
  return {real_grad, fake_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("interpolate", TORCH_BOX(&interpolate));
  m.impl("interpolate_bwd", TORCH_BOX(&interpolate_bwd));
}

}  // namespace gankernels

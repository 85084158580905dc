// x = eps * real + (1 - eps) * fake with one eps per sample, and its transpose: one pass over memory each.
#include <numeric>
#include <optional>

#include "../common.h"
#include "pages.h"
#include "vec.h"

namespace gankernels {
namespace {

template <class T, class A>
GK_MULTIVERSION void interpolate_chunk(const T* real, const T* fake, T* x, int64_t n, A eps) {
  for (int64_t i = 0; i < n; ++i) x[i] = T(eps * A(real[i]) + (A(1) - eps) * A(fake[i]));
}

template <class T, class A>
GK_MULTIVERSION void interpolate_bwd_chunk(const T* grad, T* __restrict real_grad, T* __restrict fake_grad, int64_t n, A eps) {
  for (int64_t i = 0; i < n; ++i) {
    real_grad[i] = T(eps * A(grad[i]));
    fake_grad[i] = T((A(1) - eps) * A(grad[i]));
  }
}

// The same, and <grad, real - fake>: summed in A over short runs, so that float sums stay exact to a few ulp.
template <class T, class A>
GK_MULTIVERSION double interpolate_bwd_chunk(const T* grad, const T* real, const T* fake, T* __restrict real_grad,
                                             T* __restrict fake_grad, int64_t n, A eps) {
  double wide[kLanes] = {}, total = 0;
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole;) {
    A lanes[kLanes] = {};
    for (const int64_t stop = std::min(whole, i + 32 * kLanes); i < stop; i += kLanes)
      for (int j = 0; j < kLanes; ++j) {
        const A g = A(grad[i + j]);
        real_grad[i + j] = T(eps * g);
        fake_grad[i + j] = T((A(1) - eps) * g);
        lanes[j] += g * (A(real[i + j]) - A(fake[i + j]));
      }
    for (int j = 0; j < kLanes; ++j) wide[j] += lanes[j];
  }
  for (int j = 0; j < kLanes; ++j) total += wide[j];
  for (int64_t i = whole; i < n; ++i) {
    const A g = A(grad[i]);
    real_grad[i] = T(eps * g);
    fake_grad[i] = T((A(1) - eps) * g);
    total += double(g * (A(real[i]) - A(fake[i])));
  }
  return total;
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
  Tensor x = on_huge_pages(torch::stable::empty_like(real));
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

// The gradients in real and fake; in eps too where both are given, else that one has no elements.
std::tuple<Tensor, Tensor, Tensor> interpolate_bwd(const Tensor& grad_, const Tensor& eps_, const std::optional<Tensor>& real_,
                                                   const std::optional<Tensor>& fake_) {
  const char* op = "interpolate_bwd";
  check_eps(op, eps_, grad_);
  const bool of_eps = real_ && fake_;
  GK_CHECK(of_eps || (!real_ && !fake_), op, ": real and fake must both be given, or neither, got one of them");
  const Tensor grad = samples_first(grad_), eps = as_contiguous(eps_);
  Tensor real = grad, fake = grad;
  if (of_eps) {
    check_cpu(op, "real", *real_);
    check_cpu(op, "fake", *fake_);
    check_same_shape(op, "real", *real_, "grad", grad_);
    check_same_shape(op, "fake", *fake_, "grad", grad_);
    real = in_layout_of(grad, *real_);
    fake = in_layout_of(grad, *fake_);
  }
  const int64_t samples = grad.size(0), length = samples ? grad.numel() / samples : 0, per_sample = chunks_of(length);
  Tensor real_grad = on_huge_pages(torch::stable::empty_like(grad)), fake_grad = on_huge_pages(torch::stable::empty_like(grad));
  Tensor eps_grad = torch::stable::new_empty(eps, std::vector<int64_t>{of_eps ? samples : 0});
  std::vector<double> partial(samples * per_sample);
  dispatch_floating(op, grad.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_chunk(samples, length, [&](int64_t i, int64_t begin, int64_t end) {
      const int64_t at = i * length + begin;
      const A e = data<A>(eps)[i];
      T *to_real = mutable_data<T>(real_grad) + at, *to_fake = mutable_data<T>(fake_grad) + at;
      if (of_eps)
        partial[i * per_sample + begin / kChunk] = interpolate_bwd_chunk(data<T>(grad) + at, data<T>(real) + at, data<T>(fake) + at,
                                                                         to_real, to_fake, end - begin, e);
      else
        interpolate_bwd_chunk(data<T>(grad) + at, to_real, to_fake, end - begin, e);
    });
    if (of_eps)
      for (int64_t i = 0; i < samples; ++i)
        mutable_data<A>(eps_grad)[i] =
            A(std::accumulate(partial.begin() + i * per_sample, partial.begin() + (i + 1) * per_sample, 0.0));
  });
  return {real_grad, fake_grad, eps_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("interpolate", TORCH_BOX(&interpolate));
  m.impl("interpolate_bwd", TORCH_BOX(&interpolate_bwd));
}

}  // namespace gankernels

// mean_i phi(|g_i| - k), phi(t) = t^2 or max(t, 0)^2, with its first and second derivative.
// Norms are summed per chunk in float lanes, the chunks in double: the result does not depend on the number of threads.
#include <cmath>

#include "../common.h"
#include "pages.h"
#include "vec.h"

namespace gankernels {
namespace {

template <class T, class A>
GK_MULTIVERSION double dot_chunk(const T* a, const T* b, int64_t n) {
  double wide[kLanes] = {};
  int64_t i = 0;
  while (i + kLanes <= n) {
    A lanes[kLanes] = {};
    const int64_t stop = std::min(n, i + 32 * kLanes);  // short runs in A, so that float sums stay exact to a few ulp
    for (; i + kLanes <= stop; i += kLanes)
      for (int j = 0; j < kLanes; ++j) lanes[j] += A(a[i + j]) * A(b[i + j]);
    for (int j = 0; j < kLanes; ++j) wide[j] += lanes[j];
  }
  for (; i < n; ++i) wide[0] += double(A(a[i]) * A(b[i]));
  double total = 0;
  for (int j = 0; j < kLanes; ++j) total += wide[j];
  return total;
}

template <class T, class A>
GK_MULTIVERSION void scale_chunk(const T* x, T* y, int64_t n, A a) {
  for (int64_t i = 0; i < n; ++i) y[i] = T(a * A(x[i]));
}

template <class T, class A>
GK_MULTIVERSION void combine_chunk(const T* x, const T* y, T* z, int64_t n, A a, A b) {
  for (int64_t i = 0; i < n; ++i) z[i] = T(a * A(x[i]) + b * A(y[i]));
}

// <a_i, b_i> for every sample.
template <class T>
std::vector<double> sample_dots(const Tensor& a, const Tensor& b, int64_t samples, int64_t length) {
  const int64_t per_sample = chunks_of(length);
  std::vector<double> partial(samples * per_sample), dots(samples, 0.0);
  for_each_chunk(samples, length, [&](int64_t i, int64_t begin, int64_t end) {
    const int64_t at = i * length + begin;
    partial[i * per_sample + begin / kChunk] =
        dot_chunk<T, accumulate_t<T>>(data<T>(a) + at, data<T>(b) + at, end - begin);
  });
  for (int64_t i = 0; i < samples; ++i)
    for (int64_t c = 0; c < per_sample; ++c) dots[i] += partial[i * per_sample + c];
  return dots;
}

// phi'(n)/2 divided by n, so that the gradient of phi in g is 2 * slope * g. At norm 0 it is 0, not NaN.
double slope(double norm, double target, bool one_sided) {
  if (target == 0) return 1;
  if (norm == 0 || (one_sided && norm <= target)) return 0;
  return 1 - target / norm;
}

// d slope / d norm, divided by the norm: what moves along g_i when <g_i, v_i> moves the norm.
double curvature(double norm, double target, bool one_sided) {
  if (target == 0 || norm == 0 || (one_sided && norm <= target)) return 0;
  return target / (norm * norm * norm);
}

void check(const char* op, const Tensor& grads) {
  GK_CHECK(grads.dim() >= 1 && grads.size(0) > 0, op, ": grads must have shape (N, ...) with N >= 1, got ",
           shape_text(grads.sizes()));
}

void check_bwd(const char* op, const Tensor& grad, const Tensor& grads, const Tensor& norms) {
  check(op, grads);
  check_cpu(op, "grad", grad);
  check_cpu(op, "norms", norms);
  const auto dtype = accumulate_type(grads.scalar_type());
  GK_CHECK(grad.numel() == 1 && grad.scalar_type() == dtype, op, ": grad must be a ",
           torch::headeronly::toString(dtype), " scalar, got ", torch::headeronly::toString(grad.scalar_type()), " of shape ",
           shape_text(grad.sizes()));
  GK_CHECK(norms.dim() == 1 && norms.size(0) == grads.size(0) && norms.scalar_type() == dtype, op,
           ": norms must be ", torch::headeronly::toString(dtype), " of shape (N,) = (", grads.size(0), ",), got ",
           torch::headeronly::toString(norms.scalar_type()), " of shape ", shape_text(norms.sizes()));
}

std::tuple<Tensor, Tensor> grad_norm_penalty(const Tensor& grads_, double target, bool one_sided) {
  const char* op = "grad_norm_penalty";
  check(op, grads_);
  const Tensor grads = samples_first(grads_);
  const int64_t samples = grads.size(0), length = grads.numel() / samples;
  const auto dtype = accumulate_type(grads.scalar_type());
  Tensor penalty = torch::stable::new_empty(grads, std::vector<int64_t>{}, dtype);
  Tensor norms = torch::stable::new_empty(grads, std::vector<int64_t>{samples}, dtype);
  dispatch_floating(op, grads.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const auto squares = sample_dots<T>(grads, grads, samples, length);
    double sum = 0;
    for (int64_t i = 0; i < samples; ++i) {
      const double norm = std::sqrt(squares[i]), excess = norm - target;
      mutable_data<A>(norms)[i] = A(norm);
      sum += one_sided && excess < 0 ? 0 : excess * excess;
    }
    *mutable_data<A>(penalty) = A(sum / samples);
  });
  return {penalty, norms};
}

Tensor grad_norm_penalty_bwd(const Tensor& grad, const Tensor& grads_, const Tensor& norms_, double target,
                             bool one_sided) {
  const char* op = "grad_norm_penalty_bwd";
  check_bwd(op, grad, grads_, norms_);
  const Tensor grads = samples_first(grads_), norms = as_contiguous(norms_);
  const int64_t samples = grads.size(0), length = grads.numel() / samples;
  Tensor out = on_huge_pages(torch::stable::empty_like(grads));
  dispatch_floating(op, grads.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const double scale = 2.0 / samples * *data<A>(grad);
    for_each_chunk(samples, length, [&](int64_t i, int64_t begin, int64_t end) {
      const int64_t at = i * length + begin;
      const A factor = A(scale * slope(data<A>(norms)[i], target, one_sided));
      scale_chunk(data<T>(grads) + at, mutable_data<T>(out) + at, end - begin, factor);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> grad_norm_penalty_bwd_bwd(const Tensor& grad_grads_, const Tensor& grad, const Tensor& grads_,
                                                     const Tensor& norms_, double target, bool one_sided) {
  const char* op = "grad_norm_penalty_bwd_bwd";
  check_bwd(op, grad, grads_, norms_);
  check_cpu(op, "grad_grads", grad_grads_);
  check_same_shape(op, "grad_grads", grad_grads_, "grads", grads_);
  const Tensor grads = samples_first(grads_), v = in_layout_of(grads, grad_grads_), norms = as_contiguous(norms_);
  const int64_t samples = grads.size(0), length = grads.numel() / samples;
  Tensor grad_out = torch::stable::new_empty(grads, std::vector<int64_t>{}, grad.scalar_type());
  Tensor grads_out = on_huge_pages(torch::stable::empty_like(grads));
  dispatch_floating(op, grads.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const auto dots = sample_dots<T>(grads, v, samples, length);
    const double scale = 2.0 / samples;
    double sum = 0;
    for (int64_t i = 0; i < samples; ++i) sum += slope(data<A>(norms)[i], target, one_sided) * dots[i];
    *mutable_data<A>(grad_out) = A(scale * sum);
    for_each_chunk(samples, length, [&](int64_t i, int64_t begin, int64_t end) {
      const int64_t at = i * length + begin;
      const double norm = data<A>(norms)[i], s = scale * *data<A>(grad);
      combine_chunk(data<T>(v) + at, data<T>(grads) + at, mutable_data<T>(grads_out) + at, end - begin,
                    A(s * slope(norm, target, one_sided)), A(s * curvature(norm, target, one_sided) * dots[i]));
    });
  });
  return {grad_out, grads_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("grad_norm_penalty", TORCH_BOX(&grad_norm_penalty));
  m.impl("grad_norm_penalty_bwd", TORCH_BOX(&grad_norm_penalty_bwd));
  m.impl("grad_norm_penalty_bwd_bwd", TORCH_BOX(&grad_norm_penalty_bwd_bwd));
}

}  // namespace gankernels

// s_mf = mean over a group of channels f and all pixels of sigma = sqrt(variance over the samples of group m + eps), and its
// first and second derivative. Group m has the G samples m, m + N/G, m + 2N/G, ...; work goes by (m, f, chunk of elements of
// a sample).
#include <cmath>

#include "../common.h"
#include "pages.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kElements = 512;  // of a sample, with all their group in the cache

// x - mean over the group is x_g - mean[p].
template <class T, class A>
GK_INLINE void moments(const T* x, int64_t stride, int64_t group, int64_t n, A* __restrict mean, A* __restrict squares) {
  for (int64_t p = 0; p < n; ++p) mean[p] = squares[p] = 0;
  for (int64_t g = 0; g < group; ++g)
    for (int64_t p = 0; p < n; ++p) mean[p] += A(x[g * stride + p]);
  for (int64_t p = 0; p < n; ++p) mean[p] /= A(group);
  for (int64_t g = 0; g < group; ++g)
    for (int64_t p = 0; p < n; ++p) squares[p] += (A(x[g * stride + p]) - mean[p]) * (A(x[g * stride + p]) - mean[p]);
}

// r = 1 / sigma.
template <class T, class A>
GK_MULTIVERSION void statistics(const T* x, int64_t stride, int64_t group, int64_t n, A eps, A* __restrict mean,
                                A* __restrict r) {
  moments(x, stride, group, n, mean, r);
  for (int64_t p = 0; p < n; ++p) r[p] = 1 / std::sqrt(r[p] / A(group) + eps);
}

// The sum of kElements numbers at most.
template <class A>
GK_INLINE double sum(const A* a, int64_t n) {
  A lanes[kLanes] = {};
  double total = 0;
  const int64_t whole = n - n % kLanes;
  for (int64_t p = 0; p < whole; p += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += a[p + j];
  for (int j = 0; j < kLanes; ++j) total += lanes[j];
  for (int64_t p = whole; p < n; ++p) total += a[p];
  return total;
}

template <class T, class A>
GK_MULTIVERSION double sum_of_deviations(const T* x, int64_t stride, int64_t group, int64_t n, A eps) {
  A mean[kElements], sigma[kElements];
  moments(x, stride, group, n, mean, sigma);
  for (int64_t p = 0; p < n; ++p) sigma[p] = std::sqrt(sigma[p] / A(group) + eps);
  return sum(sigma, n);
}

// out_g = factor (x_g - mean) r.
template <class T, class A>
GK_MULTIVERSION void bwd_chunk(const T* x, const A* mean, const A* r, int64_t stride, int64_t group, int64_t n, A factor,
                               T* __restrict out) {
  for (int64_t g = 0; g < group; ++g)
    for (int64_t p = 0; p < n; ++p) out[g * stride + p] = T(factor * (A(x[g * stride + p]) - mean[p]) * r[p]);
}

// With y = x - mean and u = v - mean of v: dots = <y, v> r, out_g = factor (u_g r - y_g <y, v> r^3 / G). Returns the sum of dots.
template <class T, class A>
GK_MULTIVERSION double bwd_bwd_chunk(const T* x, const T* v, const A* mean, const A* r, int64_t stride, int64_t group,
                                     int64_t n, A factor, T* __restrict out) {
  A dots[kElements], v_mean[kElements];
  for (int64_t p = 0; p < n; ++p) dots[p] = v_mean[p] = 0;
  for (int64_t g = 0; g < group; ++g)
    for (int64_t p = 0; p < n; ++p) {
      v_mean[p] += A(v[g * stride + p]);
      dots[p] += (A(x[g * stride + p]) - mean[p]) * A(v[g * stride + p]);
    }
  for (int64_t p = 0; p < n; ++p) {
    v_mean[p] /= A(group);
    dots[p] *= r[p];
  }
  for (int64_t g = 0; g < group; ++g)
    for (int64_t p = 0; p < n; ++p) {
      const A y = A(x[g * stride + p]) - mean[p], u = A(v[g * stride + p]) - v_mean[p];
      out[g * stride + p] = T(factor * r[p] * (u - y * r[p] * dots[p] / A(group)));
    }
  return sum(dots, n);
}

struct Layout {
  int64_t groups, group, channel_groups, length;  // length: elements of a sample in one group of channels

  int64_t sample() const { return channel_groups * length; }
  int64_t stride() const { return groups * sample(); }  // from one sample of a group to the next
};

Layout check(const char* op, const Tensor& x, int64_t group_size, int64_t num_channels, double eps) {
  GK_CHECK(x.dim() >= 2, op, ": x must have shape (N, C, ...), got ", shape_text(x.sizes()));
  GK_CHECK(group_size >= 1 && x.size(0) % group_size == 0, op, ": group_size must divide N = ", x.size(0), ", got ",
           group_size);
  GK_CHECK(num_channels >= 1 && x.size(1) % num_channels == 0, op, ": num_channels must divide C = ", x.size(1), ", got ",
           num_channels);
  GK_CHECK(x.size(0) == 0 || x.numel() > 0, op, ": x must have elements in every sample, got ", shape_text(x.sizes()));
  GK_CHECK(eps > 0, op, ": eps must be > 0, got ", eps);
  const int64_t n = x.size(0);
  return {n / group_size, group_size, num_channels, n ? x.numel() / n / num_channels : 1};
}

void check_grad(const char* op, const Tensor& grad, const Tensor& x, const Layout& layout) {
  check_cpu(op, "grad", grad);
  GK_CHECK(grad.dim() == 2 && grad.size(0) == layout.groups && grad.size(1) == layout.channel_groups, op,
           ": grad must have shape (N / group_size, num_channels) = (", layout.groups, ", ", layout.channel_groups,
           "), got ", shape_text(grad.sizes()));
  GK_CHECK(grad.scalar_type() == x.scalar_type(), op, ": grad must have the dtype of x, ",
           torch::headeronly::toString(x.scalar_type()), ", got ", torch::headeronly::toString(grad.scalar_type()));
}

// A sample's channels in their groups: with one group its order does not matter.
Tensor grouped(const Tensor& x, int64_t num_channels) {
  if (x.numel() == 0) return torch::stable::new_empty(x, x.sizes());  // its strides mean nothing
  return num_channels == 1 ? samples_first(x) : as_contiguous(x);
}

// body(slot, at, n): elements [at, at + n) of the first sample of the group that slot = (m, f, chunk) is in.
template <class Body>
void for_each_slot(const Layout& layout, const Body& body) {
  const int64_t chunks = (layout.length + kElements - 1) / kElements, rows = layout.groups * layout.channel_groups;
  if (rows == 0) return;
  const int64_t grain = std::max<int64_t>(1, kChunk / (std::min(layout.length, kElements) * layout.group));
  torch::stable::parallel_for(0, rows * chunks, grain, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) {
      const int64_t begin = slot % chunks * kElements;
      body(slot / chunks, slot, slot / chunks * layout.length + begin, std::min(kElements, layout.length - begin));
    }
  });
}

int64_t slots_of(const Layout& layout) {
  return layout.groups * layout.channel_groups * ((layout.length + kElements - 1) / kElements);
}

// Sums the slots of every row in their order.
template <class T>
void sum_slots(const std::vector<double>& partial, const Layout& layout, double factor, T* out) {
  const int64_t rows = layout.groups * layout.channel_groups, chunks = (layout.length + kElements - 1) / kElements;
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (int64_t c = 0; c < chunks; ++c) sum += partial[row * chunks + c];
    out[row] = T(accumulate_t<T>(factor * sum));
  }
}

Tensor minibatch_stddev(const Tensor& x_, int64_t group_size, int64_t num_channels, double eps) {
  const char* op = "minibatch_stddev";
  const Layout layout = check(op, x_, group_size, num_channels, eps);
  const Tensor x = grouped(x_, num_channels);
  Tensor out = torch::stable::new_empty(x, std::vector<int64_t>{layout.groups, num_channels});
  std::vector<double> partial(slots_of(layout));
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_slot(layout, [&](int64_t, int64_t slot, int64_t at, int64_t n) {
      partial[slot] = sum_of_deviations(data<T>(x) + at, layout.stride(), layout.group, n, A(eps));
    });
    sum_slots(partial, layout, 1. / layout.length, mutable_data<T>(out));
  });
  return out;
}

Tensor minibatch_stddev_bwd(const Tensor& grad_, const Tensor& x_, int64_t group_size, int64_t num_channels, double eps) {
  const char* op = "minibatch_stddev_bwd";
  const Layout layout = check(op, x_, group_size, num_channels, eps);
  check_cpu(op, "x", x_);
  check_grad(op, grad_, x_, layout);
  const Tensor x = grouped(x_, num_channels), grad = as_contiguous(grad_);
  Tensor out = on_huge_pages(torch::stable::empty_like(x));
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_slot(layout, [&](int64_t row, int64_t, int64_t at, int64_t n) {
      A mean[kElements], r[kElements];
      statistics(data<T>(x) + at, layout.stride(), layout.group, n, A(eps), mean, r);
      const A factor = A(data<T>(grad)[row]) / A(layout.length * layout.group);
      bwd_chunk(data<T>(x) + at, mean, r, layout.stride(), layout.group, n, factor, mutable_data<T>(out) + at);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> minibatch_stddev_bwd_bwd(const Tensor& grad_grad_, const Tensor& grad_, const Tensor& x_,
                                                    int64_t group_size, int64_t num_channels, double eps) {
  const char* op = "minibatch_stddev_bwd_bwd";
  const Layout layout = check(op, x_, group_size, num_channels, eps);
  check_cpu(op, "grad_grad", grad_grad_);
  check_same_shape(op, "grad_grad", grad_grad_, "x", x_);
  check_grad(op, grad_, x_, layout);
  const Tensor x = grouped(x_, num_channels), v = in_layout_of(x, grad_grad_), grad = as_contiguous(grad_);
  Tensor grad_out = torch::stable::new_empty(grad, grad.sizes()), x_out = on_huge_pages(torch::stable::empty_like(x));
  std::vector<double> partial(slots_of(layout));
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_slot(layout, [&](int64_t row, int64_t slot, int64_t at, int64_t n) {
      A mean[kElements], r[kElements];
      statistics(data<T>(x) + at, layout.stride(), layout.group, n, A(eps), mean, r);
      const A factor = A(data<T>(grad)[row]) / A(layout.length * layout.group);
      partial[slot] = bwd_bwd_chunk(data<T>(x) + at, data<T>(v) + at, mean, r, layout.stride(), layout.group, n, factor,
                                    mutable_data<T>(x_out) + at);
    });
    sum_slots(partial, layout, 1. / (layout.length * layout.group), mutable_data<T>(grad_out));
  });
  return {grad_out, x_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("minibatch_stddev", TORCH_BOX(&minibatch_stddev));
  m.impl("minibatch_stddev_bwd", TORCH_BOX(&minibatch_stddev_bwd));
  m.impl("minibatch_stddev_bwd_bwd", TORCH_BOX(&minibatch_stddev_bwd_bwd));
}

}  // namespace gankernels

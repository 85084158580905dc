#include "winograd.h"

#include <torch/csrc/stable/ops.h>

#include "../cpu/winograd.h"

namespace gk::winograd {

namespace kernel = gankernels::winograd;

namespace {

constexpr auto kLast = at::MemoryFormat::ChannelsLast;

at::MemoryFormat format_of(const Tensor& x, const Tensor& w) {
  return x.suggest_memory_format() == kLast || w.suggest_memory_format() == kLast ? kLast : at::MemoryFormat::Contiguous;
}

kernel::Images images_of(const Tensor& t, at::MemoryFormat format) {
  return {t.size(0), t.size(1), t.size(2), t.size(3), format == kLast};
}

Tensor numbers(int64_t count) { return at::empty({count}, at::kFloat); }

// body(begin, end, scratch) for a part of `items` in each thread
template <class Body>
void for_each_part(int64_t items, int64_t scratch_size, const Body& body) {
  const int64_t parts = std::min<int64_t>(items, torch::stable::get_num_threads());
  const Tensor scratch = numbers(parts * scratch_size);  // allocated here, since threads would not keep their pages
  float* const memory = scratch.mutable_data_ptr<float>();
  // PyTorch's own template runs on one thread in an extension that is compiled without OpenMP
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      body(items * part / parts, items * (part + 1) / parts, memory + part * scratch_size);
  });
}

template <class Tiles>
Tensor convolve(const Tensor& x_, const Tensor& w_, const Tensor& b_, IntArrayRef sizes, const Geometry& geometry, at::MemoryFormat format) {
  const Tensor x = x_.contiguous(format), w = w_.contiguous(), b = b_.defined() ? b_.contiguous() : b_;
  Tensor y = at::empty(sizes, x.options().memory_format(format));
  const kernel::Convolution<Tiles> plan(images_of(x, format), images_of(y, format), geometry.padding[0], geometry.groups);
  const Tensor packed = numbers(plan.packed());
  const float *from = x.const_data_ptr<float>(), *weights = w.const_data_ptr<float>();
  const float* bias = b.defined() ? b.const_data_ptr<float>() : nullptr;
  float *products = packed.mutable_data_ptr<float>(), *to = y.mutable_data_ptr<float>();
  for_each_part(plan.to_pack(), 0, [&](int64_t begin, int64_t end, float*) { kernel::pack(plan, weights, begin, end, products); });
  for_each_part(plan.grid.rows(), plan.scratch(), [&](int64_t begin, int64_t end, float* scratch) {
    kernel::compute(plan, from, products, bias, begin, end, scratch, to);
  });
  return y;
}

template <class Scheme>
Tensor gradient(const Tensor& image_, const Tensor& g_, IntArrayRef sizes, const Geometry& geometry, at::MemoryFormat format) {
  const Tensor image = image_.contiguous(format), g = g_.contiguous(format);
  Tensor w = at::empty(sizes, image.options());
  const kernel::Weights<Scheme> plan(images_of(image, format), images_of(g, format), geometry.padding[0], geometry.groups,
                                     torch::stable::get_num_threads());
  const float *x = image.const_data_ptr<float>(), *gradient = g.const_data_ptr<float>();
  float* to = w.mutable_data_ptr<float>();
  for_each_part(plan.items(), plan.scratch(), [&](int64_t begin, int64_t end, float* scratch) {
    for (int64_t item = begin; item < end; ++item) kernel::compute(plan, x, gradient, item, scratch, to);
  });
  return w.contiguous(format);
}

// body with the kernel's scheme
template <class Body>
Tensor with_scheme(const Geometry& geometry, const Tensor& w, const Body& body) {
  if (w.size(2) == 4) return body(kernel::Scheme<4, 2>());
  return geometry.stride[0] == 2 ? body(kernel::Scheme<3, 2>()) : body(kernel::Scheme<3, 1>());
}

// A transposed convolution is the gradient in the image of another, and the other way round.
Tensor forward(const Geometry& geometry, const Tensor& x, const Tensor& w, const Tensor& b, IntArrayRef sizes) {
  return with_scheme(geometry, w, [&]<class Scheme>(Scheme) {
    return convolve<kernel::Forward<Scheme>>(x, w, b, sizes, geometry, format_of(x, w));
  });
}
Tensor backward(const Geometry& geometry, const Tensor& g, const Tensor& w, const Tensor& b, IntArrayRef sizes) {
  const Tensor x = with_scheme(geometry, w, [&]<class Scheme>(Scheme) {
    return convolve<kernel::Backward<Scheme>>(g, w, b, sizes, geometry, format_of(g, w));
  });
  if (geometry.padding[0] == 0)  // the first row and column, of one tap across
    for (const int64_t d : {2, 3}) {
      std::vector<int64_t> more{0, 0};
      more[3 - d] = sizes[5 - d] - 2 * g.size(5 - d) - 1;
      x.narrow(d, 0, 1).copy_(at::convolution(g.narrow(d, 0, 1), w.narrow(d, 0, 1), b.defined() ? optional<Tensor>(b) : std::nullopt,
                                              geometry.stride, {0, 0}, {1, 1}, true, more, 1));
    }
  return x;
}

bool all_are(int64_t number, const std::vector<int64_t>& values) {
  return std::all_of(values.begin(), values.end(), [&](int64_t value) { return value == number; });
}

}  // namespace

bool fits(const Geometry& geometry, const Tensor& x, const Tensor& w, const Tensor& other) {
  for (const Tensor& t : {x, w, other})
    if (t.defined() && (is_traced(t) || !t.is_cpu() || t.layout() != at::kStrided || t.scalar_type() != at::kFloat || t.is_neg()))
      return false;
  if (x.dim() != 4 || w.dim() != 4 || w.size(2) != w.size(3)) return false;
  const int64_t taps = w.size(2), stride = geometry.stride[0], padding = geometry.padding[0];
  if (!all_are(stride, geometry.stride) || !all_are(padding, geometry.padding) || !all_are(1, geometry.dilation)) return false;
  const bool uneven = taps == 3 && stride == 2;
  if (!uneven && !(taps == 3 && stride == 1) && !(taps == 4 && stride == 2)) return false;
  if (padding != 1 && !(padding == 0 && uneven)) return false;
  const int64_t groups = geometry.groups, multiple = groups == 1 ? kernel::kPanel : kernel::kLane;
  if (groups > 1 && (stride != 1 || geometry.transposed)) return false;
  if (w.size(0) % (groups * multiple) != 0 || w.size(1) % multiple != 0) return false;
  // of a shape that stock refuses
  if (x.size(1) != (geometry.transposed ? w.size(0) : w.size(1) * groups)) return false;
  if (other.defined() && other.dim() == 1 && other.size(0) != w.size(geometry.transposed ? 1 : 0)) return false;
  if (x.numel() == 0 || x.size(2) < 2 || x.size(3) < 2) return false;
  // products for a pair of channels; transforms take a fifth of the time, and those of the weights as much as so many products
  constexpr double kTransforms = 1.25;
  const double of_weights = uneven ? 1000 : stride == 2 ? 3000 : 1500;
  const auto side = [&](int64_t d) { return geometry.transposed ? x.size(d) : (x.size(d) + 2 * padding - taps) / stride + 1; };
  const int64_t tiles = ((side(2) + 1) / 2) * ((side(3) + 1) / 2), products = uneven ? 25 : stride == 2 ? 36 : 16;
  return x.size(0) * side(2) * side(3) * taps * taps > kTransforms * x.size(0) * tiles * products + of_weights;
}

Tensor convolution(const Geometry& geometry, const Tensor& x, const Tensor& w, const Tensor& b) {
  std::vector<int64_t> sizes{x.size(0), w.size(geometry.transposed ? 1 : 0)};
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t size = x.size(2 + i), taps = w.size(2 + i), stride = geometry.stride[i], padding = 2 * geometry.padding[i];
    sizes.push_back(geometry.transposed ? (size - 1) * stride - padding + taps + geometry.output_padding[i]
                                        : (size + padding - taps) / stride + 1);
  }
  return (geometry.transposed ? backward : forward)(geometry, x, w, b, sizes);
}

Tensor input_gradient(const Geometry& geometry, const Tensor& g, const Tensor& x, const Tensor& w) {
  return (geometry.transposed ? forward : backward)(geometry, g, w, {}, x.sizes());
}

Tensor weight_gradient(const Geometry& geometry, const Tensor& g, const Tensor& x, const Tensor& w) {
  const Tensor &image = geometry.transposed ? g : x, &other = geometry.transposed ? x : g;
  return with_scheme(geometry, w, [&]<class Scheme>(Scheme) {
    return gradient<Scheme>(image, other, w.sizes(), geometry, format_of(x, w));
  });
}

}  // namespace gk::winograd

#include "winograd.h"

#include <torch/csrc/stable/ops.h>

#include <memory>

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

std::unique_ptr<float[]> numbers(int64_t count) { return std::unique_ptr<float[]>(new float[count]); }

template <class Tiles>
Tensor convolve(const Tensor& x_, const Tensor& w_, const Tensor& b_, IntArrayRef sizes, at::MemoryFormat format) {
  const Tensor x = x_.contiguous(format), w = w_.contiguous(), b = b_.defined() ? b_.contiguous() : b_;
  Tensor y = at::empty(sizes, x.options().memory_format(format));
  const kernel::Convolution<Tiles> plan(images_of(x, format), images_of(y, format));
  const auto packed = numbers(plan.packed());
  const float *from = x.const_data_ptr<float>(), *weight = w.const_data_ptr<float>();
  const float* bias = b.defined() ? b.const_data_ptr<float>() : nullptr;
  float* to = y.mutable_data_ptr<float>();
  // PyTorch's own template runs on one thread in an extension that is compiled without OpenMP
  torch::stable::parallel_for(0, plan.to_pack(), 1, [&](int64_t begin, int64_t end) {
    kernel::pack(plan, weight, begin, end, packed.get());
  });
  torch::stable::parallel_for(0, plan.grid.rows(), 1, [&](int64_t begin, int64_t end) {
    const auto scratch = numbers(plan.scratch());
    kernel::compute(plan, from, packed.get(), bias, begin, end, scratch.get(), to);
  });
  return y;
}

template <int S>
Tensor gradient(const Tensor& image_, const Tensor& g_, IntArrayRef sizes, at::MemoryFormat format) {
  const Tensor image = image_.contiguous(format), g = g_.contiguous(format);
  Tensor w = at::empty(sizes, image.options());
  const kernel::Weights<S> plan(images_of(image, format), images_of(g, format));
  const float *x = image.const_data_ptr<float>(), *y = g.const_data_ptr<float>();
  float* to = w.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, plan.items(), 1, [&](int64_t begin, int64_t end) {
    const auto scratch = numbers(plan.scratch());
    for (int64_t item = begin; item < end; ++item) kernel::compute(plan, x, y, item, scratch.get(), to);
  });
  return w.contiguous(format);
}

bool is_strided(const Tensor& w) { return w.size(2) == 4; }

// A transposed convolution is the gradient in the image of another, and the other way round.
Tensor forward(const Tensor& x, const Tensor& w, const Tensor& b, IntArrayRef sizes, at::MemoryFormat format) {
  return is_strided(w) ? convolve<kernel::Forward<2>>(x, w, b, sizes, format) : convolve<kernel::Forward<1>>(x, w, b, sizes, format);
}
Tensor backward(const Tensor& g, const Tensor& w, const Tensor& b, IntArrayRef sizes, at::MemoryFormat format) {
  return is_strided(w) ? convolve<kernel::Backward<2>>(g, w, b, sizes, format) : convolve<kernel::Backward<1>>(g, w, b, sizes, format);
}

bool all_are(int64_t number, const std::vector<int64_t>& values) {
  return std::all_of(values.begin(), values.end(), [&](int64_t value) { return value == number; });
}

}  // namespace

bool fits(const Geometry& geometry, const Tensor& x, const Tensor& w, const Tensor& other) {
  for (const Tensor& t : {x, w, other})
    if (t.defined() && (is_traced(t) || !t.is_cpu() || t.layout() != at::kStrided || t.scalar_type() != at::kFloat || t.is_neg()))
      return false;
  if (geometry.groups != 1 || x.dim() != 4 || w.dim() != 4 || w.size(2) != w.size(3)) return false;
  if (!all_are(1, geometry.padding) || !all_are(1, geometry.dilation)) return false;
  const int64_t stride = w.size(2) == 4 ? 2 : w.size(2) == 3 ? 1 : 0;
  if (!all_are(stride, geometry.stride) || w.size(0) % kernel::kPanel != 0 || w.size(1) % kernel::kPanel != 0) return false;
  // of a shape that stock refuses
  if (x.size(1) != w.size(geometry.transposed ? 0 : 1)) return false;
  if (other.defined() && other.dim() == 1 && other.size(0) != w.size(geometry.transposed ? 1 : 0)) return false;
  // TODO size
  return x.numel() > 0 && x.size(2) > 1 && x.size(3) > 1;
}

Tensor convolution(const Geometry& geometry, const Tensor& x, const Tensor& w, const Tensor& b) {
  std::vector<int64_t> sizes{x.size(0), w.size(geometry.transposed ? 1 : 0)};
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t size = x.size(2 + i), taps = w.size(2 + i), stride = geometry.stride[i], padding = 2 * geometry.padding[i];
    sizes.push_back(geometry.transposed ? (size - 1) * stride - padding + taps + geometry.output_padding[i]
                                        : (size + padding - taps) / stride + 1);
  }
  return (geometry.transposed ? backward : forward)(x, w, b, sizes, format_of(x, w));
}

Tensor input_gradient(const Geometry& geometry, const Tensor& g, const Tensor& x, const Tensor& w) {
  return (geometry.transposed ? forward : backward)(g, w, {}, x.sizes(), format_of(x, w));
}

Tensor weight_gradient(const Geometry& geometry, const Tensor& g, const Tensor& x, const Tensor& w) {
  const Tensor &image = geometry.transposed ? g : x, &other = geometry.transposed ? x : g;
  return is_strided(w) ? gradient<2>(image, other, w.sizes(), format_of(x, w)) : gradient<1>(image, other, w.sizes(), format_of(x, w));
}

}  // namespace gk::winograd

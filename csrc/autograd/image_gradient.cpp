#include "image_gradient.h"

#include <ATen/Dispatch.h>
#include <torch/csrc/stable/ops.h>

#include "../cpu/image_gradient.h"

namespace gk {

bool is_of_image(const Tensor& g, const Tensor& w, IntArrayRef dilation, int64_t groups) {
  const auto one = [](int64_t size) { return size == 1; };
  const auto dtype = g.scalar_type();
  if (is_traced(g) || !g.is_cpu() || g.layout() != at::kStrided || g.numel() == 0) return false;
  if ((dtype != at::kFloat && dtype != at::kDouble) || w.scalar_type() != dtype || groups != 1) return false;
  if ((w.dim() != 3 && w.dim() != 4) || !std::all_of(dilation.begin(), dilation.end(), one)) return false;
  // a kernel of one pixel over channels_last is a matrix product as it stands
  const IntArrayRef taps = w.sizes().slice(2);
  if (w.dim() == 4 && std::all_of(taps.begin(), taps.end(), one) && g.suggest_memory_format() == at::MemoryFormat::ChannelsLast)
    return false;
  return w.size(1) <= gankernels::image_gradient::kMostChannels && w.size(0) > w.size(1);
}

Tensor image_gradient(const Tensor& g_, const Tensor& w_, IntArrayRef sizes, IntArrayRef stride, IntArrayRef padding) {
  namespace kernel = gankernels::image_gradient;
  const bool line = w_.dim() == 3;
  const Tensor w = (line ? w_.unsqueeze(2) : w_).contiguous();
  const auto layout = line ? at::MemoryFormat::Contiguous : g_.suggest_memory_format();
  const Tensor g = (line ? g_.unsqueeze(2) : g_).contiguous(layout);
  const int64_t samples = g.size(0), outputs = g.size(1), channels = w.size(1);
  const kernel::Axis y{line ? 1 : sizes[2], g.size(2), w.size(2), line ? 1 : stride[0], line ? 0 : padding[0]};
  const kernel::Axis x{sizes.back(), g.size(3), w.size(3), stride.back(), padding.back()};
  Tensor image = at::empty({samples, channels, y.size, x.size}, g.options().memory_format(layout));
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "image_gradient", [&] {
    const kernel::Plan<scalar_t> plan(w.const_data_ptr<scalar_t>(), outputs, channels, y, x,
                                      layout == at::MemoryFormat::ChannelsLast);
    const scalar_t* from = g.const_data_ptr<scalar_t>();
    scalar_t* to = image.mutable_data_ptr<scalar_t>();
    const int64_t bands = plan.bands();
    // PyTorch's own template runs on one thread in an extension that is compiled without OpenMP
    torch::stable::parallel_for(0, samples * bands, 1, [&](int64_t begin, int64_t end) {
      std::vector<scalar_t> scratch(plan.scratch());
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / bands;
        kernel::compute_band(plan, from + n * outputs * y.count * x.count, i % bands, scratch.data(),
                             to + n * channels * y.size * x.size);
      }
    });
  });
  return line ? image.squeeze(2) : image;
}

}  // namespace gk

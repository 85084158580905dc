// One launch: every tile of the output is computed from its part of the input; see resample.cuh.
#include "resample.cuh"

#include "resample_launch.h"

namespace gankernels::cuda {
namespace {

Tensor upfirdn2d(const Tensor& x_, const Tensor& f_, std::vector<int64_t> up, std::vector<int64_t> down,
                 std::vector<int64_t> padding, bool flip_filter, double gain) {
  const char* op = "upfirdn2d";
  const auto [across, along] = upfirdn2d_axes(op, x_, f_, up, down, padding);
  check_same_device(op, "f", f_, x_);
  const torch::stable::accelerator::DeviceGuard guard(x_.get_device_index());
  const Images images = images_of(x_);
  const Tensor x = images.tensor, f = as_contiguous(f_);
  Tensor y = empty_images(x, {x.size(0), x.size(1), along.out, across.out}, images.channels_last);
  const Resampling resampling = resampling_of(op, across, along, f, flip_filter);
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    launch_upfirdn2d(data<T>(x), mutable_data<T>(y), resampling, layout_of(x, images.channels_last),
                     layout_of(y, images.channels_last), x.size(0), int(x.size(1)), gain, ResampleLaunch{op, x});
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CUDA, m) { m.impl("upfirdn2d", TORCH_BOX(&upfirdn2d)); }

}  // namespace gankernels::cuda

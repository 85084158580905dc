// One launch forward and one backward: a tile of the upsampled image lives in shared memory; see resample.cuh.
#include "resample.cuh"

#include <limits>

#include "../filtered_lrelu.h"
#include "resample_launch.h"

namespace gankernels::cuda {
namespace {

std::pair<Resampling, Resampling> resamplings_of(const char* op, const FilteredSizes& sizes, const Tensor& fu,
                                                 const Tensor& fd, bool flip) {
  const auto [across, along] = sizes.up_axes();
  const auto [down_across, down_along] = sizes.down_axes();
  return {resampling_of(op, across, along, fu, flip), resampling_of(op, down_across, down_along, fd, flip)};
}

std::tuple<Tensor, Tensor> filtered_lrelu(const Tensor& x_, const Tensor& fu_, const Tensor& fd_, std::optional<Tensor> b,
                                          int64_t up, int64_t down, std::vector<int64_t> padding, double gain,
                                          double slope, std::optional<double> clamp, bool flip_filter, bool save_mask) {
  const char* op = "filtered_lrelu";
  const FilteredSizes sizes = filtered_sizes(op, x_, fu_, fd_, b, up, down, padding, clamp);
  check_same_device(op, "fu", fu_, x_);
  check_same_device(op, "fd", fd_, x_);
  if (b) check_same_device(op, "b", *b, x_);
  const torch::stable::accelerator::DeviceGuard guard(x_.get_device_index());
  const Images images = images_of(x_);
  const bool channels_last = images.channels_last;
  const Tensor x = images.tensor, fu = as_contiguous(fu_), fd = as_contiguous(fd_);
  const std::optional<Tensor> bias = b ? std::optional<Tensor>(as_contiguous(*b)) : std::nullopt;
  Tensor y = empty_images(x, {x.size(0), x.size(1), sizes.height.out, sizes.width.out}, channels_last);
  Tensor mask = empty_mask(x, sizes, channels_last, save_mask);
  const ImageLayout mask_at = save_mask ? layout_of(mask, channels_last) : ImageLayout{};
  const auto resamplings = resamplings_of(op, sizes, fu, fd, flip_filter);
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    const auto launch = [&]<Middle kMiddle>() {
      launch_filtered_lrelu<T, kMiddle>(
          data<T>(x), bias ? data<T>(*bias) : nullptr, mutable_data<T>(y), mutable_data<uint8_t>(mask), resamplings.first,
          resamplings.second, layout_of(x, channels_last), layout_of(y, channels_last), mask_at, x.size(0),
          int(x.size(1)), gain * double(up * up), slope, clamp.value_or(std::numeric_limits<double>::infinity()),
          ResampleLaunch{op, x});
    };
    save_mask ? launch.template operator()<Middle::activate_and_keep>() : launch.template operator()<Middle::activate>();
  });
  return {y, mask};
}

Tensor filtered_lrelu_bwd(const Tensor& grad_, const Tensor& mask_, const Tensor& fu_, const Tensor& fd_, int64_t up,
                          int64_t down, std::vector<int64_t> padding, std::vector<int64_t> middle,
                          std::vector<int64_t> size, double gain, double slope, bool flip_filter) {
  const char* op = "filtered_lrelu_bwd";
  const FilteredSizes sizes = masked_sizes(op, grad_, mask_, fu_, fd_, up, down, padding, middle, size);
  check_same_device(op, "mask", mask_, grad_);
  check_same_device(op, "fu", fu_, grad_);
  check_same_device(op, "fd", fd_, grad_);
  const torch::stable::accelerator::DeviceGuard guard(grad_.get_device_index());
  const Images images = images_of(mask_);
  const bool channels_last = images.channels_last;
  const Tensor mask = images.tensor, grad = in_format(grad_, channels_last);
  const Tensor fu = as_contiguous(fu_), fd = as_contiguous(fd_);
  Tensor out = empty_images(grad, {grad.size(0), grad.size(1), sizes.height.out, sizes.width.out}, channels_last);
  const auto resamplings = resamplings_of(op, sizes, fu, fd, flip_filter);
  dispatch_floating(op, grad.scalar_type(), [&]<class T>() {
    launch_filtered_lrelu<T, Middle::multiply>(
        data<T>(grad), nullptr, mutable_data<T>(out), mutable_data<uint8_t>(mask), resamplings.first, resamplings.second,
        layout_of(grad, channels_last), layout_of(out, channels_last), layout_of(mask, channels_last), grad.size(0),
        int(grad.size(1)), gain, slope, 0, ResampleLaunch{op, grad});
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CUDA, m) {
  m.impl("filtered_lrelu", TORCH_BOX(&filtered_lrelu));
  m.impl("filtered_lrelu_bwd", TORCH_BOX(&filtered_lrelu_bwd));
}

}  // namespace gankernels::cuda

// Sizes and checks of filtered_lrelu, and the mask it keeps for its derivative: per number of the upsampled image 2 bits, four
// columns to a byte, in the memory format of the image.
#pragma once

#include <optional>

#include "resample.h"

namespace gankernels {

constexpr uint8_t kNegative = 1, kClamped = 2;

struct FilteredSizes {
  struct Side {
    int64_t up_taps, down_taps, up_pad, down_pad, in, middle, out;
  };
  int64_t up, down;
  Side width, height;

  Axis up_axis(const Side& s) const { return {up, 1, s.up_pad, s.up_taps, s.in, s.middle}; }
  Axis down_axis(const Side& s) const { return {1, down, s.down_pad, s.down_taps, s.middle, s.out}; }
  std::pair<Axis, Axis> up_axes() const { return {up_axis(width), up_axis(height)}; }
  std::pair<Axis, Axis> down_axes() const { return {down_axis(width), down_axis(height)}; }
};

inline void check_filters(const char* op, const Tensor& x, const Tensor& fu, const Tensor& fd, int64_t up, int64_t down) {
  check_filter(op, "fu", fu, x);
  check_filter(op, "fd", fd, x);
  GK_CHECK(up >= 1, op, ": up must be >= 1, got ", up);
  GK_CHECK(down >= 1, op, ": down must be >= 1, got ", down);
}

inline FilteredSizes filtered_sizes(const char* op, const Tensor& x, const Tensor& fu, const Tensor& fd,
                                    const std::optional<Tensor>& b, int64_t up, int64_t down,
                                    const std::vector<int64_t>& padding, std::optional<double> clamp) {
  check_images(op, "x", x);
  check_filters(op, x, fu, fd, up, down);
  check_length(op, "padding", padding, 4);
  GK_CHECK(!clamp || *clamp >= 0, op, ": clamp must be >= 0, got ", *clamp);
  if (b) {
    GK_CHECK(b->dim() == 1 && b->size(0) == x.size(1), op, ": b must have shape (C,) = (", x.size(1), ",), got ",
             shape_text(b->sizes()));
    GK_CHECK(b->scalar_type() == x.scalar_type(), op, ": b must have the dtype of x, ",
             torch::headeronly::toString(x.scalar_type()), ", got ", torch::headeronly::toString(b->scalar_type()));
  }
  const auto side = [&](int64_t in, int64_t up_taps, int64_t down_taps, int64_t before, int64_t after) {
    const int64_t middle = in * up + before + after - up_taps + 1;
    return FilteredSizes::Side{up_taps, down_taps, before, 0, in, middle, floor_div(middle - down_taps, down) + 1};
  };
  const FilteredSizes sizes{up, down, side(x.size(3), taps_across(fu), taps_across(fd), padding[0], padding[1]),
                            side(x.size(2), taps_down(fu), taps_down(fd), padding[2], padding[3])};
  GK_CHECK(sizes.width.out > 0 && sizes.height.out > 0, op, ": padding ", shape_text(padding), " leaves less of x of shape ",
           shape_text(x.sizes()), " than the filters cover");
  return sizes;
}

// padding is that in front of the upsampled and of the downsampled image, [x, y, x, y]; middle and size are [x, y].
inline FilteredSizes masked_sizes(const char* op, const Tensor& grad, const Tensor& mask, const Tensor& fu,
                                  const Tensor& fd, int64_t up, int64_t down, const std::vector<int64_t>& padding,
                                  const std::vector<int64_t>& middle, const std::vector<int64_t>& size) {
  check_images(op, "grad", grad);
  check_filters(op, grad, fu, fd, up, down);
  check_length(op, "padding", padding, 4);
  check_factors(op, "middle", middle);
  check_factors(op, "size", size);
  const std::vector<int64_t> want{grad.size(0), grad.size(1), middle[1], ceil_div(middle[0], 4)};
  GK_CHECK(mask.scalar_type() == ScalarType::Byte && mask.dim() == 4 &&
               std::equal(want.begin(), want.end(), mask.sizes().begin()),
           op, ": mask must be Byte of shape ", shape_text(want), ", got ",
           torch::headeronly::toString(mask.scalar_type()), " of shape ", shape_text(mask.sizes()));
  return {up, down,
          {taps_across(fu), taps_across(fd), padding[0], padding[2], grad.size(3), middle[0], size[0]},
          {taps_down(fu), taps_down(fd), padding[1], padding[3], grad.size(2), middle[1], size[1]}};
}

// Zeros, where rows of the upsampled image are not needed; without elements unless `save`.
inline Tensor empty_mask(const Tensor& x, const FilteredSizes& sizes, bool channels_last, bool save) {
  if (!save) return torch::stable::new_empty(x, std::vector<int64_t>{0}, ScalarType::Byte);
  const std::vector<int64_t> shape{x.size(0), x.size(1), sizes.height.middle, ceil_div(sizes.width.middle, 4)};
  Tensor mask = empty_images(torch::stable::new_empty(x, std::vector<int64_t>{0}, ScalarType::Byte), shape, channels_last);
  return torch::stable::zero_(mask);
}

inline Tensor in_format(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  Tensor copy = empty_images(t, {t.size(0), t.size(1), t.size(2), t.size(3)}, channels_last);
  return torch::stable::copy_(copy, t);
}

}  // namespace gankernels

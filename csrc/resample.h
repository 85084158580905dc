// What the resampling ops share on every device: sizes and phases along an axis, memory layouts of images, checks.
#pragma once

#include <utility>

#include "common.h"

namespace gankernels {

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// out[o] = sum of w[k] u[o down + k - pad] over `taps` taps, where u is the input with up - 1 zeros behind every element. Only the
// taps first_tap(o), first_tap(o) + up, ... meet the input; they meet its elements first_input(o), first_input(o) + 1, ...
struct Axis {
  int64_t up, down, pad, taps, in, out;
  int64_t first_input(int64_t o) const { return ceil_div(o * down - pad, up); }
  int64_t first_tap(int64_t o) const { return first_input(o) * up - (o * down - pad); }
  int64_t most_taps() const { return ceil_div(taps, up); }
};

// A batch of images, each a contiguous plane or, with channels_last, a contiguous array of pixels.
struct Images {
  Tensor tensor;
  bool channels_last;
};

inline bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != expected) return false;
    expected *= t.size(dim);
  }
  return true;
}

// t as it is when it is contiguous or channels_last, else a contiguous copy.
inline Images images_of(const Tensor& t) {
  if (t.is_contiguous()) return {t, false};
  if (is_channels_last(t)) return {t, true};
  return {as_contiguous(t), false};
}

inline Tensor empty_images(const Tensor& like, std::vector<int64_t> sizes, bool channels_last) {
  if (!channels_last) return torch::stable::new_empty(like, sizes);
  const std::vector<int64_t> pixels_first{sizes[0], sizes[2], sizes[3], sizes[1]};
  return torch::stable::transpose(torch::stable::transpose(torch::stable::new_empty(like, pixels_first), 1, 3), 2, 3);
}

inline void check_images(const char* op, const char* name, const Tensor& x) {
  GK_CHECK(x.dim() == 4 && x.size(2) > 0 && x.size(3) > 0, op, ": ", name,
           " must have shape (N, C, H, W) with H and W >= 1, got ", shape_text(x.sizes()));
}

inline void check_filter(const char* op, const char* name, const Tensor& f, const Tensor& x) {
  GK_CHECK((f.dim() == 1 || f.dim() == 2) && f.numel() > 0, op, ": ", name,
           " must have shape (taps,) or (rows, columns) and not be empty, got ", shape_text(f.sizes()));
  const ScalarType want = accumulate_type(x.scalar_type());
  GK_CHECK(f.scalar_type() == want, op, ": ", name, " must be ", torch::headeronly::toString(want), ", got ",
           torch::headeronly::toString(f.scalar_type()));
}

inline void check_length(const char* op, const char* name, const std::vector<int64_t>& values, size_t length) {
  GK_CHECK(values.size() == length, op, ": ", name, " must have ", length, " numbers, got ", values.size());
}

inline void check_factors(const char* op, const char* name, const std::vector<int64_t>& factors) {
  check_length(op, name, factors, 2);
  GK_CHECK(factors[0] >= 1 && factors[1] >= 1, op, ": ", name, " must be >= 1, got ", shape_text(factors));
}

inline int64_t taps_across(const Tensor& f) { return f.size(f.dim() - 1); }
inline int64_t taps_down(const Tensor& f) { return f.size(0); }

// The checked axes, across and along the columns.
inline std::pair<Axis, Axis> upfirdn2d_axes(const char* op, const Tensor& x, const Tensor& f, const std::vector<int64_t>& up,
                                            const std::vector<int64_t>& down, const std::vector<int64_t>& padding) {
  check_images(op, "x", x);
  check_filter(op, "f", f, x);
  check_factors(op, "up", up);
  check_factors(op, "down", down);
  check_length(op, "padding", padding, 4);
  Axis across{up[0], down[0], padding[0], taps_across(f), x.size(3), 0};
  Axis along{up[1], down[1], padding[2], taps_down(f), x.size(2), 0};
  across.out = floor_div(across.in * up[0] + padding[0] + padding[1] - across.taps, down[0]) + 1;
  along.out = floor_div(along.in * up[1] + padding[2] + padding[3] - along.taps, down[1]) + 1;
  GK_CHECK(across.out > 0 && along.out > 0, op, ": padding ", shape_text(padding), " leaves less of x of shape ",
           shape_text(x.sizes()), " than the filter covers");
  return {across, along};
}

}  // namespace gankernels

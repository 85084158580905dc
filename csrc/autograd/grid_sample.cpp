// Bilinear sampling of images whose derivatives are exact to any order, in the images and in the grid.
//
// Stock has kernels for sampling, S(x, p), and for its first derivative, and none beyond. With g the gradient at y = S(x, p):
//   input(g, p) is the gradient in x, linear in g: its derivatives are S and grid again;
//   grid(g, x, p) the gradient in p, linear in g and in x: given u, the gradient arriving at it, its derivatives are those of
//   <g, T(x, p, u)>, where T is the derivative of S along u. T is four gathers of stock, which differentiate by themselves.
#include "fold.h"

#include <torch/library.h>

namespace {

using namespace gk;

constexpr int64_t kBilinear = 0, kZeros = 0, kReflection = 2;  // as grid_sampler_2d numbers them

struct Mode {
  int64_t padding;
  bool align_corners;
};

// ---------------------------------------------------------------------------------------------------------------------
// T by gathers
// ---------------------------------------------------------------------------------------------------------------------

// Along one dimension of `size` pixels, for grid coordinates of shape (N, 1, P): the pixel at or below the point, the
// fraction beyond it, and the derivative of the point in its coordinate, which is constant around almost every point.
struct Axis {
  Tensor pixel, fraction, slope;
};

Axis axis(const Tensor& coordinate, int64_t size, Mode mode) {
  const double scale = mode.align_corners ? (size - 1) / 2. : size / 2.;
  Tensor point = (coordinate + 1) * scale - (mode.align_corners ? 0. : .5);
  Tensor slope = at::full_like(point, scale);
  if (mode.padding == kReflection) {  // about the outermost pixels' centres, or about their outer edges
    const double low = mode.align_corners ? 0. : -.5, span = mode.align_corners ? size - 1. : size;
    if (span == 0) {
      point = point * 0;
      slope = slope * 0;
    } else {
      const Tensor from_low = (point - low).detach();
      const Tensor flips = (from_low.abs() / span).floor();
      const Tensor back = flips.remainder(2) != 0, sign = at::where(from_low < 0, -1., 1.);
      const Tensor within = (point - low) * sign - flips * span;
      point = at::where(back, span - within, within) + low;
      slope = slope * sign * at::where(back, -1., 1.);
    }
  }
  if (mode.padding != kZeros) {
    slope = slope * (point >= 0).logical_and(point <= size - 1).to(slope.scalar_type());
    point = point.clamp(0, size - 1);
  }
  const Tensor below = point.detach().floor();
  return {below.to(at::kLong), point - below, slope.detach()};
}

struct Corner {
  Tensor index, exists;
};

Corner corner(const Tensor& column, const Tensor& row, int64_t width, int64_t height) {
  const Tensor exists =
      (column >= 0).logical_and(column < width).logical_and(row >= 0).logical_and(row < height);
  return {row.clamp(0, height - 1) * width + column.clamp(0, width - 1), exists};
}

struct Geometry {
  Axis x, y;
  std::array<Corner, 4> corners;  // left above, right above, left below, right below

  Geometry(const Tensor& images, const Tensor& grid, Mode mode)
      : x(axis(grid.select(-1, 0).flatten(1).unsqueeze(1), images.size(3), mode)),
        y(axis(grid.select(-1, 1).flatten(1).unsqueeze(1), images.size(2), mode)) {
    for (int64_t k = 0; k < 4; ++k) corners[k] = corner(x.pixel + k % 2, y.pixel + k / 2, images.size(3), images.size(2));
  }

  Tensor value(const Tensor& images, int64_t k) const {  // (N, C, P)
    const Tensor index = corners[k].index.expand({-1, images.size(1), -1});
    return images.flatten(2).gather(2, index) * corners[k].exists.to(images.scalar_type());
  }

  // The derivative along u of corner k's weight: with fractions f, those weights are (1 - fx)(1 - fy), fx (1 - fy), ...
  Tensor weight_along(const Tensor& ux, const Tensor& uy, int64_t k) const {
    const Tensor of_x = k / 2 ? y.fraction : 1 - y.fraction, of_y = k % 2 ? x.fraction : 1 - x.fraction;
    return (k % 2 ? ux : -ux) * of_x + (k / 2 ? uy : -uy) * of_y;
  }
};

// The derivatives of <g, T(x, p, u)> in g, x and p.
std::tuple<Tensor, Tensor, Tensor> tangent(const Tensor& u, const Tensor& g, const Tensor& x, const Tensor& grid, Mode mode,
                                           std::array<bool, 3> mask) {
  const Geometry at_grid(x, grid, mode);
  const Tensor ux = u.select(-1, 0).flatten(1).unsqueeze(1) * at_grid.x.slope;
  const Tensor uy = u.select(-1, 1).flatten(1).unsqueeze(1) * at_grid.y.slope;
  const Tensor flat = g.flatten(2);
  Tensor in_g, in_x, in_grid, cross;
  for (int64_t k = 0; k < 4; ++k) {
    const Tensor weight = at_grid.weight_along(ux, uy, k);
    if (mask[0] || mask[2]) {
      const Tensor value = at_grid.value(x, k);
      if (mask[0]) in_g = in_g.defined() ? in_g + value * weight : value * weight;
      const double sign = k == 0 || k == 3 ? 1 : -1;
      if (mask[2]) cross = cross.defined() ? cross + value * sign : value * sign;
    }
    if (mask[1]) {
      if (!in_x.defined()) in_x = at::zeros_like(x, at::MemoryFormat::Contiguous).flatten(2);
      const Corner& c = at_grid.corners[k];
      in_x = in_x.scatter_add(2, c.index.expand({-1, x.size(1), -1}), flat * weight * c.exists.to(x.scalar_type()));
    }
  }
  if (mask[0]) in_g = in_g.view_as(g);
  if (mask[1]) in_x = in_x.view_as(x);
  if (mask[2]) {
    const Tensor twist = (flat * cross).sum(1, true);
    in_grid = at::stack({twist * uy * at_grid.x.slope, twist * ux * at_grid.y.slope}, -1).view_as(grid);
  }
  return {in_g, in_x, in_grid};
}

// ---------------------------------------------------------------------------------------------------------------------
// S and its two derivatives
// ---------------------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> backward(const Tensor& g, const Tensor& x, const Tensor& grid, Mode mode, std::array<bool, 2> mask) {
  return at::grid_sampler_2d_backward(g, x, grid, kBilinear, mode.padding, mode.align_corners, mask);
}

struct Sampling : SavingNode {
  Mode mode;
};

template <class N>
Tensor record_sampling(std::initializer_list<Tensor> inputs, Mode mode, const auto& compute) {
  return record<N>(inputs, compute, [&](auto& node, const Tensor&) {
    node.mode = mode;
    node.save(inputs);
  });
}

Tensor sample(const Tensor& x, const Tensor& grid, Mode mode);

// Edges: g, x, grid.
struct GridSampleGrid : Sampling {
  std::string name() const override { return "gankernels::GridSampleGrid"; }
  variable_list apply(variable_list&& v) override {
    if (!v[0].defined()) return variable_list(3);
    const auto [g, x, grid] = tangent(v[0], unpack(0), unpack(1), unpack(2), mode, {wants(0), wants(1), wants(2)});
    return {g, x, grid};
  }
};

Tensor gradient_in_grid(const Tensor& g, const Tensor& x, const Tensor& grid, Mode mode) {
  return record_sampling<GridSampleGrid>({g, x, grid}, mode,
                                         [&] { return std::get<1>(backward(g, x, grid, mode, {false, true})); });
}

// Edges: g, grid.
struct GridSampleInput : Sampling {
  std::string name() const override { return "gankernels::GridSampleInput"; }
  variable_list apply(variable_list&& v) override {
    variable_list out(2);
    if (!v[0].defined()) return out;
    const Tensor g = unpack(0), grid = unpack(1);
    if (wants(0)) out[0] = sample(v[0], grid, mode);
    if (wants(1)) out[1] = gradient_in_grid(g, v[0], grid, mode);
    return out;
  }
};

// x is here for its shape
Tensor gradient_in_input(const Tensor& g, const Tensor& grid, const Tensor& x, Mode mode) {
  return record_sampling<GridSampleInput>({g, grid}, mode,
                                          [&] { return std::get<0>(backward(g, x, grid, mode, {true, false})); });
}

// Edges: x, grid.
struct GridSample : Sampling {
  static constexpr auto kName = "gankernels::GridSample";
  std::string name() const override { return kName; }
  variable_list apply(variable_list&& grads) override {
    const Tensor& g = grads[0];
    variable_list out(2);
    if (!g.defined()) return out;
    const Tensor x = unpack(0), grid = unpack(1);
    const bool needs_x = wants(0), needs_grid = wants(1);
    if (!at::GradMode::is_enabled()) {
      std::tie(out[0], out[1]) = backward(g, x, grid, mode, {needs_x, needs_grid});
      if (!needs_grid) out[1] = Tensor();
    } else {
      if (needs_x) out[0] = gradient_in_input(g, grid, x, mode);
      if (needs_grid) out[1] = gradient_in_grid(g, x, grid, mode);
    }
    return out;
  }
};

Tensor sample(const Tensor& x, const Tensor& grid, Mode mode) {
  return record_sampling<GridSample>(
      {x, grid}, mode, [&] { return at::grid_sampler_2d(x, grid, kBilinear, mode.padding, mode.align_corners); });
}

Tensor grid_sample(const Tensor& x, const Tensor& grid, int64_t padding_mode, bool align_corners) {
  TORCH_CHECK(x.dim() == 4 && grid.dim() == 4 && grid.size(0) == x.size(0) && grid.size(3) == 2,
              "gankernels.grid_sample: x must have shape (N, C, H, W) and grid (N, H_out, W_out, 2), got ", x.sizes(), " and ",
              grid.sizes());
  return sample(x, grid, {padding_mode, align_corners});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(gankernels, m) {
  declare_keeps_rows(GridSample::kName);
  m.def("grid_sample(Tensor x, Tensor grid, int padding_mode, bool align_corners) -> Tensor", grid_sample);
}

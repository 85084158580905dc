// y = r x with r = rsqrt(mean of x^2 over the channels + eps) at every pixel, and its first and second derivative.
// Work goes tile by tile: neighbouring pixels with all their channels, few enough for the tile to stay in the cache
// between the sums and the result, so that memory is read once and in order. Each pixel is summed by one thread.
#include <cmath>

#include "../common.h"
#include "pages.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kPixels = 512;      // most pixels of a tile
constexpr int64_t kPlanePixels = 64;  // fewest pixels of a tile of planes: whole cache lines, and runs worth a prefetch

// `rows`: each pixel's channels are dense (channels_last, latents); else each channel's pixels are (contiguous images).
struct Layout {
  int64_t samples, channels, pixels;
  bool rows;
};

struct Tile {
  int64_t at, channels, pixels, plane;  // plane: from one channel to the next, unless rows
  bool rows;
};

// sums[pixel] = <a, b> over the channels.
template <class T, class A>
GK_MULTIVERSION void dots(const T* a, const T* b, A* __restrict sums, Tile t) {
  a += t.at;
  b += t.at;
  if (!t.rows) {
    for (int64_t p = 0; p < t.pixels; ++p) sums[p] = 0;
    for (int64_t c = 0; c < t.channels; ++c, a += t.plane, b += t.plane)
      for (int64_t p = 0; p < t.pixels; ++p) sums[p] += A(a[p]) * A(b[p]);
    return;
  }
  for (int64_t p = 0; p < t.pixels; ++p, a += t.channels, b += t.channels) {
    A lanes[kLanes] = {}, rest = 0;
    int64_t c = 0;
    for (; c + kLanes <= t.channels; c += kLanes)
      for (int j = 0; j < kLanes; ++j) lanes[j] += A(a[c + j]) * A(b[c + j]);
    for (; c < t.channels; ++c) rest += A(a[c]) * A(b[c]);
    if (t.channels >= kLanes)
      for (int width = kLanes / 2; width; width /= 2)
        for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    sums[p] = lanes[0] + rest;
  }
}

// out = i x, with one factor per pixel.
template <class T, class A>
GK_MULTIVERSION void combine(const T* x, const A* i, T* __restrict out, Tile t) {
  x += t.at;
  out += t.at;
  if (!t.rows) {
    for (int64_t c = 0; c < t.channels; ++c, x += t.plane, out += t.plane)
      for (int64_t p = 0; p < t.pixels; ++p) out[p] = T(i[p] * A(x[p]));
    return;
  }
  for (int64_t p = 0; p < t.pixels; ++p, x += t.channels, out += t.channels)
    for (int64_t c = 0; c < t.channels; ++c) out[c] = T(i[p] * A(x[c]));
}

// out = i x + j y.
template <class T, class A>
GK_MULTIVERSION void combine(const T* x, const T* y, const A* i, const A* j, T* __restrict out, Tile t) {
  x += t.at;
  y += t.at;
  out += t.at;
  if (!t.rows) {
    for (int64_t c = 0; c < t.channels; ++c, x += t.plane, y += t.plane, out += t.plane)
      for (int64_t p = 0; p < t.pixels; ++p) out[p] = T(i[p] * A(x[p]) + j[p] * A(y[p]));
    return;
  }
  for (int64_t p = 0; p < t.pixels; ++p, x += t.channels, y += t.channels, out += t.channels)
    for (int64_t c = 0; c < t.channels; ++c) out[c] = T(i[p] * A(x[c]) + j[p] * A(y[c]));
}

// out = i x + j y + k z.
template <class T, class A>
GK_MULTIVERSION void combine(const T* x, const T* y, const T* z, const A* i, const A* j, const A* k, T* __restrict out,
                             Tile t) {
  x += t.at;
  y += t.at;
  z += t.at;
  out += t.at;
  if (!t.rows) {
    for (int64_t c = 0; c < t.channels; ++c, x += t.plane, y += t.plane, z += t.plane, out += t.plane)
      for (int64_t p = 0; p < t.pixels; ++p) out[p] = T(i[p] * A(x[p]) + j[p] * A(y[p]) + k[p] * A(z[p]));
    return;
  }
  for (int64_t p = 0; p < t.pixels; ++p, x += t.channels, y += t.channels, z += t.channels, out += t.channels)
    for (int64_t c = 0; c < t.channels; ++c) out[c] = T(i[p] * A(x[c]) + j[p] * A(y[c]) + k[p] * A(z[c]));
}

// r = rsqrt(squares / channels + eps), in place.
template <class A>
GK_MULTIVERSION void rsqrt_of_mean(A* squares, int64_t channels, A eps, int64_t pixels) {
  for (int64_t p = 0; p < pixels; ++p) squares[p] = A(1) / std::sqrt(squares[p] / A(channels) + eps);
}

// -r^3 dot / channels, in place. In this order a dot of 0 stays 0 where r^3 overflows.
template <class A>
GK_MULTIVERSION void along_x(const A* r, A* dot, int64_t channels, int64_t pixels) {
  for (int64_t p = 0; p < pixels; ++p) dot[p] = -dot[p] / A(channels) * r[p] * r[p] * r[p];
}

void check(const char* op, const Tensor& x, double eps) {
  GK_CHECK(x.dim() >= 2 && x.dim() <= 5, op, ": x must have shape (N, C) or (N, C, ...), 5 dimensions at most, got ",
           shape_text(x.sizes()));
  GK_CHECK(eps > 0, op, ": eps must be > 0, got ", eps);
}

Layout layout_of(const Tensor& x) {
  const int64_t n = x.size(0), c = x.size(1);
  if (x.numel() == 0) return {0, 1, 0, false};
  if (c == 1) return {1, 1, x.numel(), false};
  return x.stride(1) == 1 ? Layout{1, c, x.numel() / c, true} : Layout{n, c, x.numel() / (n * c), false};
}

template <class Body>
void for_each_tile(const Layout& layout, const Body& body) {
  const auto [samples, channels, pixels, rows] = layout;
  const int64_t most = std::clamp<int64_t>(kChunk / channels, rows ? 1 : kPlanePixels, kPixels);
  const int64_t per_sample = (pixels + most - 1) / most, grain = std::max<int64_t>(1, 2 * kChunk / (most * channels));
  torch::stable::parallel_for(0, samples * per_sample, grain, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t begin = item % per_sample * most;
      const int64_t at = rows ? begin * channels : item / per_sample * channels * pixels + begin;
      body(Tile{at, channels, std::min(most, pixels - begin), pixels, rows});
    }
  });
}

Tensor pixel_norm(const Tensor& x_, double eps) {
  const char* op = "pixel_norm";
  check(op, x_, eps);
  const Tensor x = planes_or_rows(x_);
  Tensor y = on_huge_pages(torch::stable::empty_like(x));
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_tile(layout_of(x), [&](const Tile& tile) {
      A r[kPixels];
      dots(data<T>(x), data<T>(x), r, tile);
      rsqrt_of_mean(r, tile.channels, A(eps), tile.pixels);
      combine(data<T>(x), r, mutable_data<T>(y), tile);
    });
  });
  return y;
}

Tensor pixel_norm_bwd(const Tensor& grad_, const Tensor& x_, double eps) {
  const char* op = "pixel_norm_bwd";
  check(op, x_, eps);
  check_cpu(op, "grad", grad_);
  check_same_shape(op, "grad", grad_, "x", x_);
  const Tensor x = planes_or_rows(x_), grad = in_layout_of(x, grad_);
  Tensor out = on_huge_pages(torch::stable::empty_like(x));
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_tile(layout_of(x), [&](const Tile& tile) {
      A r[kPixels], along[kPixels];
      dots(data<T>(x), data<T>(x), r, tile);
      dots(data<T>(x), data<T>(grad), along, tile);
      rsqrt_of_mean(r, tile.channels, A(eps), tile.pixels);
      along_x(r, along, tile.channels, tile.pixels);
      combine(data<T>(grad), data<T>(x), r, along, mutable_data<T>(out), tile);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> pixel_norm_bwd_bwd(const Tensor& grad_grad_, const Tensor& grad_, const Tensor& x_,
                                              double eps) {
  const char* op = "pixel_norm_bwd_bwd";
  check(op, x_, eps);
  check_cpu(op, "grad", grad_);
  check_cpu(op, "grad_grad", grad_grad_);
  check_same_shape(op, "grad", grad_, "x", x_);
  check_same_shape(op, "grad_grad", grad_grad_, "x", x_);
  const Tensor x = planes_or_rows(x_), grad = in_layout_of(x, grad_), v = in_layout_of(x, grad_grad_);
  Tensor grad_out = on_huge_pages(torch::stable::empty_like(x)), x_out = on_huge_pages(torch::stable::empty_like(x));
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_tile(layout_of(x), [&](const Tile& tile) {
      A r[kPixels], along_g[kPixels], along_v[kPixels], along[kPixels];
      dots(data<T>(x), data<T>(x), r, tile);
      dots(data<T>(x), data<T>(grad), along_g, tile);
      dots(data<T>(x), data<T>(v), along_v, tile);
      dots(data<T>(grad), data<T>(v), along, tile);
      rsqrt_of_mean(r, tile.channels, A(eps), tile.pixels);
      along_x(r, along_g, tile.channels, tile.pixels);
      along_x(r, along_v, tile.channels, tile.pixels);
      along_x(r, along, tile.channels, tile.pixels);
      for (int64_t p = 0; p < tile.pixels; ++p) along[p] += 3 / r[p] * along_g[p] * along_v[p];
      combine(data<T>(v), data<T>(x), r, along_v, mutable_data<T>(grad_out), tile);
      combine(data<T>(x), data<T>(grad), data<T>(v), along, along_v, along_g, mutable_data<T>(x_out), tile);
    });
  });
  return {grad_out, x_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("pixel_norm", TORCH_BOX(&pixel_norm));
  m.impl("pixel_norm_bwd", TORCH_BOX(&pixel_norm_bwd));
  m.impl("pixel_norm_bwd_bwd", TORCH_BOX(&pixel_norm_bwd_bwd));
}

}  // namespace gankernels

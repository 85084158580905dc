// Normalisation of a sample's groups of channels with a scale and an offset per channel, and its first and second derivative.
//
// A unit of work (one group, or one sample where channels are innermost) is swept once for its sums and once for the result,
// tile by tile, so that the second sweep reads from the cache. Within a tile sums are taken channel by channel; a group's sums are
// those of its channels times the channels' weights. Features without pixels, layer norm's, are lines instead: runs of elements
// with a weight each. Every unit is summed by one thread, in one order.
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "../common.h"
#include "../group_norm.h"
#include "pages.h"
#include "vec.h"

namespace gankernels {
namespace {

using std::optional;

constexpr int64_t kTile = 2048;   // most elements of a tile: those of three tensors stay in the first-level cache
constexpr int64_t kWidth = 1024;  // most channels of a tile
constexpr int64_t kPixels = 32;   // most pixels of a tile of rows, for the sake of rounding
constexpr int64_t kRun = 8 * kLanes;  // of a plane is summed up by itself, likewise

// `rows`: channels are innermost (channels_last, or no pixels at all); else each channel's pixels are dense.
struct Layout {
  int64_t samples, groups, per_group, pixels;
  bool rows;
  int64_t channels() const { return groups * per_group; }
  int64_t count() const { return per_group * pixels; }
  // Rows of pixels interleave the groups, so that a unit has them all.
  int64_t groups_of_unit() const { return rows && pixels > 1 ? groups : 1; }
  bool one_run() const { return groups_of_unit() == 1; }  // a unit is one group, and one run of memory
  bool lines() const { return pixels == 1; }              // and its elements are channels
};

// Element (c, p) is at `at` + c * step + p, for rows at `at` + p * step + c; `channel` is that of c = 0.
struct Tile {
  int64_t at, channel, channels, pixels, step;
  bool rows;
};

// The sum of kLanes numbers, pairwise.
template <class A>
GK_INLINE A sum_of(A* lanes) {
  for (int width = kLanes / 2; width; width /= 2)
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  return lanes[0];
}

// Mean of a run, and the sum of squares around it; `centre` false: around 0.
template <bool centre, class T, class A>
GK_MULTIVERSION void moments(const T* x, int64_t n, A& mean, A& squares) {
  const int64_t whole = n - n % kLanes;
  mean = 0;
  if (centre) {
    A lanes[kLanes] = {}, rest = 0;
    for (int64_t p = 0; p < whole;) {
      A run[kLanes] = {};
      for (const int64_t end = std::min(p + kRun, whole); p < end; p += kLanes)
        for (int j = 0; j < kLanes; ++j) run[j] += A(x[p + j]);
      for (int j = 0; j < kLanes; ++j) lanes[j] += run[j];
    }
    for (int64_t p = whole; p < n; ++p) rest += A(x[p]);
    mean = (sum_of(lanes) + rest) / A(n);
  }
  A lanes[kLanes] = {}, rest = 0;
  const A m = mean;
  for (int64_t p = 0; p < whole;) {
    A run[kLanes] = {};
    for (const int64_t end = std::min(p + kRun, whole); p < end; p += kLanes)
      for (int j = 0; j < kLanes; ++j) run[j] += (A(x[p + j]) - m) * (A(x[p + j]) - m);
    for (int j = 0; j < kLanes; ++j) lanes[j] += run[j];
  }
  for (int64_t p = whole; p < n; ++p) rest += (A(x[p]) - m) * (A(x[p]) - m);
  squares = sum_of(lanes) + rest;
}

// s[c] = sum of a over the pixels.
template <class T, class A>
GK_MULTIVERSION void sums(const T* a, A* __restrict s, Tile t) {
  a += t.at;
  for (int64_t c = 0; c < t.channels; ++c) s[c] = A(a[c]);
  for (int64_t p = 1; p < t.pixels; ++p) {
    a += t.step;
    for (int64_t c = 0; c < t.channels; ++c) s[c] += A(a[c]);
  }
}

// s[c] = sum of (x - m[c])^2.
template <class T, class A>
GK_MULTIVERSION void centred_squares(const T* x, const A* m, A* __restrict s, Tile t) {
  x += t.at;
  std::fill_n(s, t.channels, A(0));
  for (int64_t p = 0; p < t.pixels; ++p, x += t.step)
    for (int64_t c = 0; c < t.channels; ++c) s[c] += (A(x[c]) - m[c]) * (A(x[c]) - m[c]);
}

// sa[c] = sum of a, sax[c] = sum of a (x - m[c]) i[c].
template <class T, class A>
GK_MULTIVERSION void sums(const T* a, const T* x, const A* m, const A* i, A* __restrict sa, A* __restrict sax, Tile t) {
  a += t.at;
  x += t.at;
  if (t.rows) {
    std::fill_n(sa, t.channels, A(0));
    std::fill_n(sax, t.channels, A(0));
    for (int64_t p = 0; p < t.pixels; ++p, a += t.step, x += t.step)
      for (int64_t c = 0; c < t.channels; ++c) {
        sa[c] += A(a[c]);
        sax[c] += A(a[c]) * (A(x[c]) - m[c]);
      }
    for (int64_t c = 0; c < t.channels; ++c) sax[c] *= i[c];
    return;
  }
  const int64_t whole = t.pixels - t.pixels % kLanes;
  for (int64_t c = 0; c < t.channels; ++c, a += t.step, x += t.step) {
    A of_a[kLanes] = {}, of_ax[kLanes] = {}, rest_a = 0, rest_ax = 0;
    const A mean = m[c];
    for (int64_t p = 0; p < whole;) {
      A run_a[kLanes] = {}, run_ax[kLanes] = {};
      for (const int64_t end = std::min(p + kRun, whole); p < end; p += kLanes)
        for (int j = 0; j < kLanes; ++j) {
          run_a[j] += A(a[p + j]);
          run_ax[j] += A(a[p + j]) * (A(x[p + j]) - mean);
        }
      for (int j = 0; j < kLanes; ++j) { of_a[j] += run_a[j]; of_ax[j] += run_ax[j]; }
    }
    for (int64_t p = whole; p < t.pixels; ++p) {
      rest_a += A(a[p]);
      rest_ax += A(a[p]) * (A(x[p]) - mean);
    }
    sa[c] = sum_of(of_a) + rest_a;
    sax[c] = (sum_of(of_ax) + rest_ax) * i[c];
  }
}

// s[c] = sum of a b.
template <class T, class A>
GK_MULTIVERSION void product_sums(const T* a, const T* b, A* __restrict s, Tile t) {
  a += t.at;
  b += t.at;
  if (t.rows) {
    std::fill_n(s, t.channels, A(0));
    for (int64_t p = 0; p < t.pixels; ++p, a += t.step, b += t.step)
      for (int64_t c = 0; c < t.channels; ++c) s[c] += A(a[c]) * A(b[c]);
    return;
  }
  const int64_t whole = t.pixels - t.pixels % kLanes;
  for (int64_t c = 0; c < t.channels; ++c, a += t.step, b += t.step) {
    A lanes[kLanes] = {}, rest = 0;
    for (int64_t p = 0; p < whole;) {
      A run[kLanes] = {};
      for (const int64_t end = std::min(p + kRun, whole); p < end; p += kLanes)
        for (int j = 0; j < kLanes; ++j) run[j] += A(a[p + j]) * A(b[p + j]);
      for (int j = 0; j < kLanes; ++j) lanes[j] += run[j];
    }
    for (int64_t p = whole; p < t.pixels; ++p) rest += A(a[p]) * A(b[p]);
    s[c] = sum_of(lanes) + rest;
  }
}

// What a tile's result is made of: factors per channel.
template <class A>
struct Factors {
  A m[kWidth], i[kWidth], j[kWidth], k[kWidth], l[kWidth];
};

// out = i (x - m) + j.
template <class T, class A>
GK_MULTIVERSION void combine(const T* x, const Factors<A>& f, T* __restrict out, Tile t) {
  x += t.at;
  out += t.at;
  const int64_t outer = t.rows ? t.pixels : t.channels;
  for (int64_t o = 0; o < outer; ++o, x += t.step, out += t.step) {
    if (t.rows)
      for (int64_t c = 0; c < t.channels; ++c) out[c] = T(f.i[c] * (A(x[c]) - f.m[c]) + f.j[c]);
    else
      for (int64_t p = 0; p < t.pixels; ++p) out[p] = T(f.i[o] * (A(x[p]) - f.m[o]) + f.j[o]);
  }
}

// out = i a + j (x - m) + k.
template <class T, class A>
GK_MULTIVERSION void combine(const T* a, const T* x, const Factors<A>& f, T* __restrict out, Tile t) {
  a += t.at;
  x += t.at;
  out += t.at;
  const int64_t outer = t.rows ? t.pixels : t.channels;
  for (int64_t o = 0; o < outer; ++o, a += t.step, x += t.step, out += t.step) {
    if (t.rows)
      for (int64_t c = 0; c < t.channels; ++c) out[c] = T(f.i[c] * A(a[c]) + f.j[c] * (A(x[c]) - f.m[c]) + f.k[c]);
    else
      for (int64_t p = 0; p < t.pixels; ++p) out[p] = T(f.i[o] * A(a[p]) + f.j[o] * (A(x[p]) - f.m[o]) + f.k[o]);
  }
}

// out = i a + j b + k (x - m) + l.
template <class T, class A>
GK_MULTIVERSION void combine(const T* a, const T* b, const T* x, const Factors<A>& f, T* __restrict out, Tile t) {
  a += t.at;
  b += t.at;
  x += t.at;
  out += t.at;
  const int64_t outer = t.rows ? t.pixels : t.channels;
  for (int64_t o = 0; o < outer; ++o, a += t.step, b += t.step, x += t.step, out += t.step) {
    if (t.rows)
      for (int64_t c = 0; c < t.channels; ++c)
        out[c] = T(f.i[c] * A(a[c]) + f.j[c] * A(b[c]) + f.k[c] * (A(x[c]) - f.m[c]) + f.l[c]);
    else
      for (int64_t p = 0; p < t.pixels; ++p)
        out[p] = T(f.i[o] * A(a[p]) + f.j[o] * A(b[p]) + f.k[o] * (A(x[p]) - f.m[o]) + f.l[o]);
  }
}

// Of n elements of a line with a weight each: the sums of w a and w a (x - m).
template <class T, class A>
GK_MULTIVERSION void line_sums(const T* a, const T* x, const A* w, A m, int64_t n, A& wa, A& wax) {
  const int64_t whole = n - n % kLanes;
  A of_wa[kLanes] = {}, of_wax[kLanes] = {}, rest_wa = 0, rest_wax = 0;
  for (int64_t p = 0; p < whole;) {
    A run_wa[kLanes] = {}, run_wax[kLanes] = {};
    for (const int64_t end = std::min(p + kRun, whole); p < end; p += kLanes)
      for (int j = 0; j < kLanes; ++j) {
        run_wa[j] += w[p + j] * A(a[p + j]);
        run_wax[j] += w[p + j] * A(a[p + j]) * (A(x[p + j]) - m);
      }
    for (int j = 0; j < kLanes; ++j) { of_wa[j] += run_wa[j]; of_wax[j] += run_wax[j]; }
  }
  for (int64_t p = whole; p < n; ++p) {
    rest_wa += w[p] * A(a[p]);
    rest_wax += w[p] * A(a[p]) * (A(x[p]) - m);
  }
  wa = sum_of(of_wa) + rest_wa;
  wax = sum_of(of_wax) + rest_wax;
}

// The sums of v, v (x - m) and w v a.
template <class T, class A>
GK_MULTIVERSION void line_sums(const T* v, const T* a, const T* x, const A* w, A m, int64_t n, A& sv, A& svx, A& wva) {
  const int64_t whole = n - n % kLanes;
  A of_v[kLanes] = {}, of_vx[kLanes] = {}, of_wva[kLanes] = {}, rest_v = 0, rest_vx = 0, rest_wva = 0;
  for (int64_t p = 0; p < whole;) {
    A run_v[kLanes] = {}, run_vx[kLanes] = {}, run_wva[kLanes] = {};
    for (const int64_t end = std::min(p + kRun, whole); p < end; p += kLanes)
      for (int j = 0; j < kLanes; ++j) {
        run_v[j] += A(v[p + j]);
        run_vx[j] += A(v[p + j]) * (A(x[p + j]) - m);
        run_wva[j] += A(v[p + j]) * (w[p + j] * A(a[p + j]));
      }
    for (int j = 0; j < kLanes; ++j) { of_v[j] += run_v[j]; of_vx[j] += run_vx[j]; of_wva[j] += run_wva[j]; }
  }
  for (int64_t p = whole; p < n; ++p) {
    rest_v += A(v[p]);
    rest_vx += A(v[p]) * (A(x[p]) - m);
    rest_wva += A(v[p]) * (w[p] * A(a[p]));
  }
  sv = sum_of(of_v) + rest_v;
  svx = sum_of(of_vx) + rest_vx;
  wva = sum_of(of_wva) + rest_wva;
}

// out = i w (x - m) + b.
template <class T, class A>
GK_MULTIVERSION void line(const T* x, const A* w, const A* b, A m, A i, T* __restrict out, int64_t n) {
  for (int64_t c = 0; c < n; ++c) out[c] = T(i * w[c] * (A(x[c]) - m) + b[c]);
}

// out = i w a + j (x - m) + k.
template <class T, class A>
GK_MULTIVERSION void line(const T* a, const T* x, const A* w, A m, A i, A j, A k, T* __restrict out, int64_t n) {
  for (int64_t c = 0; c < n; ++c) out[c] = T(i * w[c] * A(a[c]) + j * (A(x[c]) - m) + k);
}

// Both results of the second derivative: w r (v - e - d r (x - m)) + v_w r (x - m) + v_b, and
// i v + j (v_w - d r w) a + k (x - m) + l. Where `parameters` is false, v_w and v_b are 0 and not read.
template <class A>
struct LineFactors {
  A m, r, e, d, i, j, k, l;
};
template <bool parameters, class T, class A>
GK_MULTIVERSION void line(const T* v, const T* a, const T* x, const A* w, const A* vw, const A* vb, LineFactors<A> f,
                          T* __restrict a_out, T* __restrict x_out, int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    const A centred = A(x[c]) - f.m, projected = A(v[c]) - f.e - f.d * f.r * centred;
    a_out[c] = T(w[c] * f.r * projected + (parameters ? vw[c] * f.r * centred + vb[c] : A(0)));
    x_out[c] = T(f.i * A(v[c]) + f.j * ((parameters ? vw[c] : A(0)) - f.d * f.r * w[c]) * A(a[c]) + f.k * centred + f.l);
  }
}

// <s, w>, or the sum of s where w is null.
template <class A>
GK_MULTIVERSION double weighed(const A* s, const A* w, int64_t n) {
  A lanes[kLanes] = {};
  double rest = 0;
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += w ? s[c + j] * w[c + j] : s[c + j];
  for (; c < n; ++c) rest += w ? s[c] * w[c] : s[c];
  return rest + sum_of(lanes);
}

template <class A>
GK_MULTIVERSION void add(A* __restrict sum, const A* s, int64_t n) {
  for (int64_t c = 0; c < n; ++c) sum[c] += s[c];
}

// Without pixels a channel's sum has one term per sample: w += a (i b + j (x - m) + k), for one sample, or w += a i (x - m) and
// offset += a.
template <class T, class A>
GK_MULTIVERSION void add_sample(const T* a, const T* b, const T* x, A m, A i, A j, A k, A* __restrict w, int64_t n) {
  for (int64_t c = 0; c < n; ++c) w[c] += A(a[c]) * (i * A(b[c]) + j * (A(x[c]) - m) + k);
}

template <class T, class A>
GK_MULTIVERSION void add_sample(const T* a, const T* x, A m, A i, A* __restrict w, A* __restrict offset, int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    w[c] += A(a[c]) * (i * (A(x[c]) - m));
    offset[c] += A(a[c]);
  }
}

Layout layout_of(const Tensor& x, int64_t groups) {
  const int64_t n = x.size(0), c = x.size(1);
  if (x.numel() == 0) return {0, groups, c / groups, 0, false};
  const int64_t pixels = x.numel() / (n * c);
  return {n, groups, c / groups, pixels, pixels == 1 || (c > 1 && x.stride(1) == 1)};
}

// body(first group, number of groups, unit): `unit` calls back with its tiles.
struct Unit {
  const Layout& layout;
  int64_t sample, group, groups;

  template <class Body>
  void for_each_tile(const Body& body) const {
    const int64_t channels = groups * layout.per_group, first = group * layout.per_group;
    const bool rows = layout.rows;
    const int64_t whole = layout.channels(), step = rows ? whole : layout.pixels;
    const int64_t pixels = rows ? std::clamp<int64_t>(kTile / std::min(channels, kWidth), 1, std::min(kPixels, layout.pixels))
                                : std::min(kTile, layout.pixels);
    const int64_t width = std::min({channels, kWidth, std::max<int64_t>(1, kTile / pixels)});
    for (int64_t c = 0; c < channels; c += width)
      for (int64_t p = 0; p < layout.pixels; p += pixels) {
        const int64_t at = sample * whole * layout.pixels + (rows ? p * step + first + c : (first + c) * step + p);
        body(Tile{at, first + c, std::min(width, channels - c), std::min(pixels, layout.pixels - p), step, rows});
      }
  }
  // body(index of the group in (N, G), its first channel within the tile, number of channels) for each group of a tile.
  template <class Body>
  void for_each_group(const Tile& t, const Body& body) const {
    for (int64_t c = 0; c < t.channels;) {
      const int64_t g = (t.channel + c) / layout.per_group;
      const int64_t end = std::min(t.channels, (g + 1) * layout.per_group - t.channel);
      body(sample * layout.groups + g, c, end - c);
      c = end;
    }
  }
  // body(where in memory, its first channel if it is a line, number of elements) for each piece of a unit that is one run
  template <class Body>
  void for_each_piece(const Body& body) const {
    const int64_t first = group * layout.per_group, begin = (sample * layout.channels() + first) * layout.pixels;
    for (int64_t p = 0; p < layout.count(); p += kTile) body(begin + p, first + p, std::min(kTile, layout.count() - p));
  }
  template <class Body>
  void for_each_statistic(const Body& body) const {
    for (int64_t g = 0; g < groups; ++g) body(sample * layout.groups + group + g);
  }
};

template <class Body>
void for_each_unit(const Layout& layout, const Body& body) {
  const int64_t groups = layout.groups_of_unit(), per_sample = layout.groups / groups;
  const int64_t grain = std::max<int64_t>(1, 2 * kChunk / std::max<int64_t>(1, groups * layout.count()));
  torch::stable::parallel_for(0, layout.samples * per_sample, grain, [&](int64_t first, int64_t last) {
    for (int64_t u = first; u < last; ++u) body(Unit{layout, u / per_sample, u % per_sample * groups, groups});
  });
}

// total[k][c] = its sum over the samples, by blocks of samples and runs of channels; add_sample_of(sample, first channel, number,
// sums...).
template <class A, class Add, class... Totals>
void over_samples(int64_t samples, int64_t channels, const Add& add_sample_of, Totals*... totals) {
  const int64_t per_block = std::max<int64_t>(16, (samples + 31) / 32), blocks = (samples + per_block - 1) / per_block;
  constexpr int64_t kinds = sizeof...(Totals);
  std::vector<A> partial(blocks * kinds * channels);
  const int64_t runs = (channels + kWidth - 1) / kWidth;
  torch::stable::parallel_for(0, blocks * runs, 1, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t block = item / runs, c = item % runs * kWidth, n = std::min(kWidth, channels - c);
      A* sums = partial.data() + block * kinds * channels + c;
      for (int64_t i = block * per_block; i < std::min(samples, (block + 1) * per_block); ++i)
        [&]<size_t... k>(std::index_sequence<k...>) {
          add_sample_of(i, c, n, sums + k * channels...);
        }(std::make_index_sequence<kinds>());
    }
  });
  int64_t kind = 0;
  for (A* total : {totals...}) {
    std::fill(total, total + channels, A(0));
    for (int64_t block = 0; block < blocks; ++block) add(total, partial.data() + (block * kinds + kind) * channels, channels);
    ++kind;
  }
}

void check(const char* op, const Tensor& x, int64_t groups) {
  GK_CHECK(x.dim() >= 2, op, ": x must have shape (N, C) or (N, C, ...), got ", shape_text(x.sizes()));
  GK_CHECK(groups >= 1 && x.size(1) % groups == 0, op, ": groups must divide the ", x.size(1), " channels, got ", groups);
}

void check_per_channel(const char* op, const char* name, const optional<Tensor>& t, const Tensor& x) {
  if (!t) return;
  check_cpu(op, name, *t);
  GK_CHECK(t->numel() == x.size(1) && t->dim() == 1, op, ": ", name, " must have shape (C,) = (", x.size(1), ",), got ",
           shape_text(t->sizes()));
}

void check_statistics(const char* op, const Tensor& mean, const Tensor& rstd, const Tensor& x, int64_t groups) {
  for (const Tensor* t : {&mean, &rstd}) {
    const char* name = t == &mean ? "mean" : "rstd";
    check_cpu(op, name, *t);
    GK_CHECK(t->dim() == 2 && t->size(0) == x.size(0) && t->size(1) == groups &&
                 t->scalar_type() == accumulate_type(x.scalar_type()) && t->is_contiguous(),
             op, ": ", name, " must be ", torch::headeronly::toString(accumulate_type(x.scalar_type())), " of shape (N, G) = (",
             x.size(0), ", ", groups, "), got ", torch::headeronly::toString(t->scalar_type()), " of shape ",
             shape_text(t->sizes()));
  }
}

// Numbers per channel in the dtype of the sums, `value` for all where there are none.
Tensor per_channel(const optional<Tensor>& t, const Tensor& x, double value) {
  const auto dtype = accumulate_type(x.scalar_type());
  if (t && t->scalar_type() == dtype) return as_contiguous(*t);
  const std::array<int64_t, 1> channels{x.size(1)};
  Tensor numbers = torch::stable::new_empty(x, channels, dtype);
  return t ? torch::stable::copy_(numbers, *t) : torch::stable::fill_(numbers, value);
}

// An output that was not asked for has no elements.
Tensor per_channel_output(const Tensor& x, bool wanted) {
  const std::array<int64_t, 1> channels{wanted ? x.size(1) : 0};
  return torch::stable::new_empty(x, channels, accumulate_type(x.scalar_type()));
}

// op(tensors..., N, C, pixels, groups, further) of stock's, whose results are three tensors.
template <class Further, class... Tensors>
std::tuple<Tensor, Tensor, Tensor> by_stock(const char* op, const Tensor& x, int64_t groups, const Further& further,
                                            const Tensors&... tensors) {
  using torch::stable::detail::from, torch::stable::detail::to;
  const int64_t n = x.size(0), c = x.size(1);
  std::array<StableIValue, sizeof...(tensors) + 5> stack{from(tensors)..., from(n), from(c), from(x.numel() / (n * c)),
                                                         from(groups), from(further)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
}

std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor& x_, const optional<Tensor>& weight_,
                                              const optional<Tensor>& bias_, int64_t groups, double eps, bool centre) {
  const char* op = "group_norm";
  check(op, x_, groups);
  check_per_channel(op, "weight", weight_, x_);
  check_per_channel(op, "bias", bias_, x_);
  const Tensor x = planes_or_rows(x_), weight = per_channel(weight_, x, 1), bias = per_channel(bias_, x, 0);
  if (stock_takes(x, centre))
    return by_stock("aten::native_group_norm", x, groups, eps, x, optional<Tensor>(weight), optional<Tensor>(bias));
  const Layout layout = layout_of(x, groups);
  const std::array<int64_t, 2> statistics{x.size(0), groups};
  Tensor y = on_huge_pages(torch::stable::empty_like(x));
  Tensor mean_ = torch::stable::new_zeros(x, statistics, accumulate_type(x.scalar_type()));
  Tensor rstd_ = torch::stable::new_zeros(x, statistics, accumulate_type(x.scalar_type()));
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const double count = double(layout.count());
    const A *w = data<A>(weight), *b = data<A>(bias);
    A *mean = mutable_data<A>(mean_), *rstd = mutable_data<A>(rstd_);
    for_each_unit(layout, [&](const Unit& unit) {
      const int64_t first = unit.sample * layout.groups + unit.group;
      if (layout.one_run()) {
        double so_far = 0, middle = 0, squares = 0;
        unit.for_each_piece([&](int64_t at, int64_t, int64_t n) {
          A mean_of_piece, squares_of_piece;
          if (centre)
            moments<true>(data<T>(x) + at, n, mean_of_piece, squares_of_piece);
          else
            moments<false>(data<T>(x) + at, n, mean_of_piece, squares_of_piece);
          const double step = mean_of_piece - middle, share = n / (so_far + n);
          middle += step * share;
          squares += squares_of_piece + step * step * so_far * share;
          so_far += n;
        });
        mean[first] = A(middle);
        rstd[first] = A(1 / std::sqrt(squares / count + eps));
        if (layout.lines())
          return unit.for_each_piece([&](int64_t at, int64_t c, int64_t n) {
            line(data<T>(x) + at, w + c, b + c, mean[first], rstd[first], mutable_data<T>(y) + at, n);
          });
      }
      Factors<A> f;
      A s[kWidth];
      if (!layout.one_run()) {
        std::vector<double> total(unit.groups);
        if (centre) {
          unit.for_each_tile([&](const Tile& t) {
            sums(data<T>(x), s, t);
            unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) { total[g - first] += weighed<A>(s + c, nullptr, n); });
          });
          unit.for_each_statistic([&](int64_t g) { mean[g] = A(std::exchange(total[g - first], 0) / count); });
        }
        unit.for_each_tile([&](const Tile& t) {
          unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) { std::fill_n(f.m + c, n, mean[g]); });
          centred_squares(data<T>(x), f.m, s, t);
          unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) { total[g - first] += weighed<A>(s + c, nullptr, n); });
        });
        unit.for_each_statistic([&](int64_t g) { rstd[g] = A(1 / std::sqrt(total[g - first] / count + eps)); });
      }
      unit.for_each_tile([&](const Tile& t) {
        unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) {
          for (int64_t i = c; i < c + n; ++i) {
            f.m[i] = mean[g];
            f.i[i] = w[t.channel + i] * rstd[g];
            f.j[i] = b[t.channel + i];
          }
        });
        combine(data<T>(x), f, mutable_data<T>(y), t);
      });
    });
  });
  return {y, mean_, rstd_};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_bwd(const Tensor& grad_, const Tensor& x_, const optional<Tensor>& weight_,
                                                  const Tensor& mean_, const Tensor& rstd_, int64_t groups, bool centre,
                                                  bool of_x, bool of_parameters) {
  const char* op = "group_norm_bwd";
  check(op, x_, groups);
  check_cpu(op, "grad", grad_);
  check_same_shape(op, "grad", grad_, "x", x_);
  check_per_channel(op, "weight", weight_, x_);
  check_statistics(op, mean_, rstd_, x_, groups);
  const Tensor x = planes_or_rows(x_), grad = in_layout_of(x, grad_), weight = per_channel(weight_, x, 1);
  const std::array<int64_t, 1> none{0};
  if (stock_derives(x, mean_, rstd_, centre) && (of_x || of_parameters)) {
    const bool mask[] = {true, of_parameters, of_parameters};  // PyTorch 2.13's crashes in channels_last without x's
    auto [gx, gw, gb] = by_stock("aten::native_group_norm_backward", x, groups, torch::headeronly::HeaderOnlyArrayRef<bool>(mask, 3),
                                 grad, x, mean_, rstd_, optional<Tensor>(weight));
    const Tensor absent = torch::stable::new_empty(x, none);
    return {of_x ? gx : absent, of_parameters ? gw : per_channel_output(x, false), of_parameters ? gb : per_channel_output(x, false)};
  }
  const Layout layout = layout_of(x, groups);
  Tensor x_out = of_x ? on_huge_pages(torch::stable::empty_like(x)) : torch::stable::new_empty(x, none);
  Tensor w_out = per_channel_output(x, of_parameters), b_out = per_channel_output(x, of_parameters);
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const int64_t channels = layout.channels();
    const double count = double(layout.count());
    const bool keep = of_parameters && layout.pixels > 1;
    const A *w = data<A>(weight), *mean = data<A>(mean_), *rstd = data<A>(rstd_);
    // per sample and channel, the sums of g and of g x̂
    std::vector<A> kept(keep ? 2 * layout.samples * channels : 0);
    A *kept_g = kept.data(), *kept_gx = kept_g + kept.size() / 2;
    if (of_x || keep)
      for_each_unit(layout, [&](const Unit& unit) {
        const int64_t first = unit.sample * layout.groups + unit.group;
        if (layout.lines()) {
          const A m = mean[first], r = rstd[first];
          double of_wg = 0, of_wgx = 0;
          unit.for_each_piece([&](int64_t at, int64_t c, int64_t n) {
            A piece_wg, piece_wgx;
            line_sums(data<T>(grad) + at, data<T>(x) + at, w + c, m, n, piece_wg, piece_wgx);
            of_wg += piece_wg;
            of_wgx += piece_wgx;
          });
          const A j = A(-r * r * r * of_wgx / count), k = centre ? A(-r * of_wg / count) : 0;
          return unit.for_each_piece([&](int64_t at, int64_t c, int64_t n) {
            line(data<T>(grad) + at, data<T>(x) + at, w + c, m, r, j, k, mutable_data<T>(x_out) + at, n);
          });
        }
        Factors<A> f;
        A sg[kWidth], sgx[kWidth];
        std::vector<double> total(2 * unit.groups);  // sums of w g and w g x̂
        double *wg = total.data(), *wgx = wg + unit.groups;
        unit.for_each_tile([&](const Tile& t) {
          unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) {
            std::fill_n(f.m + c, n, mean[g]);
            std::fill_n(f.i + c, n, rstd[g]);
          });
          sums(data<T>(grad), data<T>(x), f.m, f.i, sg, sgx, t);
          unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) {
            wg[g - first] += weighed(sg + c, w + t.channel + c, n);
            wgx[g - first] += weighed(sgx + c, w + t.channel + c, n);
          });
          if (keep) {
            add(kept_g + unit.sample * channels + t.channel, sg, t.channels);
            add(kept_gx + unit.sample * channels + t.channel, sgx, t.channels);
          }
        });
        if (of_x)
          unit.for_each_tile([&](const Tile& t) {
            unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) {
              const A r = rstd[g], a = centre ? A(wg[g - first] / count) : 0, b = A(wgx[g - first] / count);
              for (int64_t i = c; i < c + n; ++i) {
                f.m[i] = mean[g];
                f.i[i] = r * w[t.channel + i];
                f.j[i] = -r * r * b;
                f.k[i] = -r * a;
              }
            });
            combine(data<T>(grad), data<T>(x), f, mutable_data<T>(x_out), t);
          });
      });
    if (!of_parameters) return;
    over_samples<A>(layout.samples, channels, [&](int64_t i, int64_t c, int64_t n, A* of_w, A* of_b) {
      if (keep) {
        add(of_w, kept_gx + i * channels + c, n);
        return add(of_b, kept_g + i * channels + c, n);
      }
      for (int64_t end; n > 0; n -= end - c, of_w += end - c, of_b += end - c, c = end) {
        const int64_t g = i * layout.groups + c / layout.per_group, at = i * channels + c;
        end = std::min(c + n, (c / layout.per_group + 1) * layout.per_group);
        add_sample(data<T>(grad) + at, data<T>(x) + at, mean[g], rstd[g], of_w, of_b, end - c);
      }
    }, mutable_data<A>(w_out), mutable_data<A>(b_out));
  });
  return {x_out, w_out, b_out};
}

// v arrives at x's gradient, v_weight and v_bias at those of the parameters.
std::tuple<Tensor, Tensor, Tensor> group_norm_bwd_bwd(const Tensor& v_, const optional<Tensor>& v_weight_,
                                                      const optional<Tensor>& v_bias_, const Tensor& grad_, const Tensor& x_,
                                                      const optional<Tensor>& weight_, const Tensor& mean_,
                                                      const Tensor& rstd_, int64_t groups, bool centre, bool of_weight) {
  const char* op = "group_norm_bwd_bwd";
  check(op, x_, groups);
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"grad_grad", v_}, {"grad", grad_}}) {
    check_cpu(op, name, t);
    check_same_shape(op, name, t, "x", x_);
  }
  check_per_channel(op, "weight", weight_, x_);
  check_per_channel(op, "grad_grad_weight", v_weight_, x_);
  check_per_channel(op, "grad_grad_bias", v_bias_, x_);
  check_statistics(op, mean_, rstd_, x_, groups);
  const Tensor x = planes_or_rows(x_), grad = in_layout_of(x, grad_), v = in_layout_of(x, v_);
  const Tensor weight = per_channel(weight_, x, 1), v_weight = per_channel(v_weight_, x, 0), v_bias = per_channel(v_bias_, x, 0);
  const Layout layout = layout_of(x, groups);
  Tensor grad_out = on_huge_pages(torch::stable::empty_like(x)), x_out = on_huge_pages(torch::stable::empty_like(x));
  Tensor w_out = per_channel_output(x, of_weight);
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const int64_t channels = layout.channels();
    const double count = double(layout.count());
    const bool keep = of_weight && layout.pixels > 1;
    const A *w = data<A>(weight), *vw = data<A>(v_weight), *vb = data<A>(v_bias), *mean = data<A>(mean_), *rstd = data<A>(rstd_);
    // per sample and channel, the sums of g, g x̂ and g v; per group, the means of v and v x̂
    std::vector<A> kept(keep ? 3 * layout.samples * channels : 0), means(2 * layout.samples * layout.groups);
    A *kept_g = kept.data(), *kept_gx = kept_g + kept.size() / 3, *kept_gv = kept_gx + kept.size() / 3;
    A *mean_v = means.data(), *mean_vx = mean_v + means.size() / 2;
    struct Totals {
      double v, vx, wg, wgx, wgv, vwg, vwgx;
    };
    // x's result is i v + j[c] g + k (x - m) + l, with j[c] = r (v_w - r d w)
    struct OfX {
      A i, k, l;
    };
    const auto finish = [&](const Totals& sum, int64_t g) {
      mean_v[g] = centre ? A(sum.v / count) : 0;
      mean_vx[g] = A(sum.vx / count);
      const double r = rstd[g], a = centre ? sum.wg / count : 0, b = sum.wgx / count, e = mean_v[g], d = mean_vx[g];
      const double u = centre ? sum.vwg / count : 0, both = sum.wgv / count - a * e - 3 * b * d;
      return OfX{A(-r * r * b), A(-r * r * (r * both + sum.vwgx / count)), A(r * (r * (b * e + d * a) - u))};
    };
    for_each_unit(layout, [&](const Unit& unit) {
      const int64_t first = unit.sample * layout.groups + unit.group;
      if (layout.lines()) {
        const A m = mean[first], r = rstd[first];
        Totals sum{};
        unit.for_each_piece([&](int64_t at, int64_t c, int64_t n) {
          A p[7] = {};
          line_sums(data<T>(v) + at, data<T>(grad) + at, data<T>(x) + at, w + c, m, n, p[0], p[1], p[4]);
          line_sums(data<T>(grad) + at, data<T>(x) + at, w + c, m, n, p[2], p[3]);
          if (v_weight_) line_sums(data<T>(grad) + at, data<T>(x) + at, vw + c, m, n, p[5], p[6]);
          sum = {sum.v + p[0],         sum.vx + r * p[1],  sum.wg + p[2],      sum.wgx + r * p[3],
                 sum.wgv + p[4],       sum.vwg + p[5],     sum.vwgx + r * p[6]};
        });
        const OfX of_x = finish(sum, first);
        const LineFactors<A> f{m, r, mean_v[first], mean_vx[first], of_x.i, r, of_x.k, of_x.l};
        return unit.for_each_piece([&](int64_t at, int64_t c, int64_t n) {
          const T *piece_v = data<T>(v) + at, *piece_g = data<T>(grad) + at, *piece_x = data<T>(x) + at;
          T *of_g = mutable_data<T>(grad_out) + at, *of_x = mutable_data<T>(x_out) + at;
          if (v_weight_ || v_bias_)
            line<true>(piece_v, piece_g, piece_x, w + c, vw + c, vb + c, f, of_g, of_x, n);
          else
            line<false>(piece_v, piece_g, piece_x, w + c, vw, vb, f, of_g, of_x, n);
        });
      }
      Factors<A> f;
      A sg[kWidth], sgx[kWidth], sv[kWidth], svx[kWidth], sgv[kWidth];
      std::vector<Totals> total(unit.groups, Totals{});
      std::vector<OfX> of_x(unit.groups);
      unit.for_each_tile([&](const Tile& t) {
        unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) {
          std::fill_n(f.m + c, n, mean[g]);
          std::fill_n(f.i + c, n, rstd[g]);
        });
        sums(data<T>(grad), data<T>(x), f.m, f.i, sg, sgx, t);
        sums(data<T>(v), data<T>(x), f.m, f.i, sv, svx, t);
        product_sums(data<T>(grad), data<T>(v), sgv, t);
        unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) {
          Totals& sum = total[g - first];
          sum.v += weighed<A>(sv + c, nullptr, n);
          sum.vx += weighed<A>(svx + c, nullptr, n);
          sum.wg += weighed(sg + c, w + t.channel + c, n);
          sum.wgx += weighed(sgx + c, w + t.channel + c, n);
          sum.wgv += weighed(sgv + c, w + t.channel + c, n);
          if (!v_weight_) return;
          sum.vwg += weighed(sg + c, vw + t.channel + c, n);
          sum.vwgx += weighed(sgx + c, vw + t.channel + c, n);
        });
        if (!keep) return;
        const int64_t at = unit.sample * channels + t.channel;
        add(kept_g + at, sg, t.channels);
        add(kept_gx + at, sgx, t.channels);
        add(kept_gv + at, sgv, t.channels);
      });
      unit.for_each_statistic([&](int64_t g) { of_x[g - first] = finish(total[g - first], g); });
      unit.for_each_tile([&](const Tile& t) {
        unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) {
          const A r = rstd[g];
          for (int64_t i = c; i < c + n; ++i) {
            const A scale = r * w[t.channel + i];
            f.m[i] = mean[g];
            f.i[i] = scale;
            f.j[i] = r * (vw[t.channel + i] - scale * mean_vx[g]);
            f.k[i] = vb[t.channel + i] - scale * mean_v[g];
          }
        });
        combine(data<T>(v), data<T>(x), f, mutable_data<T>(grad_out), t);
        unit.for_each_group(t, [&](int64_t g, int64_t c, int64_t n) {
          const A r = rstd[g], rd = r * mean_vx[g];
          for (int64_t i = c; i < c + n; ++i) f.j[i] = r * (vw[t.channel + i] - rd * w[t.channel + i]);
          std::fill_n(f.i + c, n, of_x[g - first].i);
          std::fill_n(f.k + c, n, of_x[g - first].k);
          std::fill_n(f.l + c, n, of_x[g - first].l);
        });
        combine(data<T>(v), data<T>(grad), data<T>(x), f, mutable_data<T>(x_out), t);
      });
    });
    if (!of_weight) return;
    over_samples<A>(layout.samples, channels, [&](int64_t i, int64_t c, int64_t n, A* sum) {
      for (int64_t end; n > 0; n -= end - c, sum += end - c, c = end) {
        const int64_t g = i * layout.groups + c / layout.per_group, at = i * channels + c;
        end = std::min(c + n, (c / layout.per_group + 1) * layout.per_group);
        const A r = rstd[g];
        if (keep)
          for (int64_t k = 0; k < end - c; ++k)
            sum[k] += r * (kept_gv[at + k] - mean_v[g] * kept_g[at + k] - mean_vx[g] * kept_gx[at + k]);
        else
          add_sample(data<T>(grad) + at, data<T>(v) + at, data<T>(x) + at, mean[g], r, -r * r * mean_vx[g], -r * mean_v[g], sum,
                     end - c);
      }
    }, mutable_data<A>(w_out));
  });
  return {grad_out, x_out, w_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("group_norm", TORCH_BOX(&group_norm));
  m.impl("group_norm_bwd", TORCH_BOX(&group_norm_bwd));
  m.impl("group_norm_bwd_bwd", TORCH_BOX(&group_norm_bwd_bwd));
}

}  // namespace gankernels

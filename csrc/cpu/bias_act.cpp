// y = clamp(gain act(scale x + noise + b)) with its first and second derivative; formulas in gankernels/ops/bias_act.py.
// Work goes tile by tile through buffers that stay in the first-level cache: load and shift (per dtype), activate (per
// activation), combine, store. Piecewise linear functions, whose arithmetic takes less time than such buffers, go through one
// loop, first derivative and sums included. A sample is a matrix: of channels by pixels (planes) or of pixels by channels (rows).
#include <cmath>
#include <limits>
#include <optional>

#include "../common.h"
#include "exponentials.h"
#include "pages.h"
#include "stream.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kTile = 1024;      // elements of a tile: the six buffers of a second derivative fit the first-level cache
constexpr int64_t kItem = 65536;     // elements of an item of work, about
constexpr int64_t kItemRows = 256;   // most rows of an item
constexpr int64_t kBandCols = 4096;  // most columns where sums across rows are wanted: the fewer, the more rows share them

// In the order of ACTIVATIONS in gankernels/ops/bias_act.py.
enum Activation { kLinear, kReLU, kLeakyReLU, kTanh, kSigmoid, kELU, kSELU, kSoftplus, kSwish, kActivations };

constexpr double kSeluScale = 1.0507009873554804934, kSeluAlpha = 1.6732632423543772848;

template <class A>
struct Shape {  // of the function after the sum
  A alpha, gain, limit;  // NaN: no limit, since it compares false with everything
};

template <int act, class A>
GK_INLINE A value(A u, A alpha) {
  if constexpr (act == kReLU) return u > 0 ? u : u * A(0);  // NaN stays NaN
  if constexpr (act == kLeakyReLU) return u > 0 ? u : alpha * u;
  if constexpr (act == kTanh) {
    const A e = fast_expm1(A(2) * u);
    return e / (e + A(2));
  }
  if constexpr (act == kSigmoid) return A(1) / (A(1) + fast_exp(-u));
  if constexpr (act == kELU) return u < 0 ? fast_expm1(u) : u;
  if constexpr (act == kSELU) return A(kSeluScale) * (u < 0 ? A(kSeluAlpha) * fast_expm1(u) : u);
  if constexpr (act == kSoftplus) return (u < 0 ? u * A(0) : u) + fast_log1p(fast_exp(u < 0 ? u : -u));
  if constexpr (act == kSwish) return u / (A(1) + fast_exp(-u));
  return u;
}

// The derivative of `value`, from its result a; swish also needs u.
template <int act, class A>
GK_INLINE A slope(A u, A a, A alpha) {
  if constexpr (act == kReLU) return a > 0 ? A(1) : A(0);
  if constexpr (act == kLeakyReLU) return (alpha < 0 ? u : a) > 0 ? A(1) : alpha;
  if constexpr (act == kTanh) return A(1) - a * a;
  if constexpr (act == kSigmoid) return a * (A(1) - a);
  if constexpr (act == kELU) return a <= 0 ? a + A(1) : A(1);
  if constexpr (act == kSELU) return a <= 0 ? a + A(kSeluScale * kSeluAlpha) : A(kSeluScale);
  if constexpr (act == kSoftplus) return -fast_expm1(-a);
  if constexpr (act == kSwish) {
    const A s = A(1) / (A(1) + fast_exp(-u));
    return s + a * (A(1) - s);
  }
  return A(1);
}

constexpr bool is_piecewise_linear(int act) { return act <= kLeakyReLU; }

// The derivative of `slope` in a: times `slope` it is the second derivative. Of swish it is the second derivative itself.
template <int act, class A>
GK_INLINE A bend(A u, A a) {
  if constexpr (act == kTanh) return A(-2) * a;
  if constexpr (act == kSigmoid) return A(1) - A(2) * a;
  if constexpr (act == kELU || act == kSELU) return a <= 0 ? A(1) : A(0);
  if constexpr (act == kSoftplus) return fast_exp(-a);
  if constexpr (act == kSwish) {
    const A s = A(1) / (A(1) + fast_exp(-u));
    return s * (A(1) - s) * (A(2) + u - A(2) * a);
  }
  return A(0);
}

template <int act, class A>
GK_MULTIVERSION void activate(A* u, int64_t n, Shape<A> f) {
  for (int64_t i = 0; i < n; ++i) {
    A y = f.gain * value<act>(u[i], f.alpha);
    y = y > f.limit ? f.limit : y;
    u[i] = y < -f.limit ? -f.limit : y;
  }
}

// From u, or from the y that was kept: first = dy/du; second = d first / du, or d first / dy.
template <int act, bool from_y, bool bent, class A>
GK_MULTIVERSION void differentiate(const A* __restrict in, A* __restrict first, A* __restrict second, int64_t n, Shape<A> f) {
  const A per_gain = f.gain == 0 ? A(0) : A(1) / f.gain;
  for (int64_t i = 0; i < n; ++i) {
    const A a = from_y ? in[i] * per_gain : value<act>(in[i], f.alpha), y = from_y ? in[i] : f.gain * a;
    const A inside = y >= f.limit || y <= -f.limit ? A(0) : A(1);
    const A gained = inside * f.gain * slope<act>(in[i], a, f.alpha);
    first[i] = gained;
    if constexpr (bent && !is_piecewise_linear(act)) {
      const A d = bend<act>(in[i], a);
      second[i] = inside * (from_y ? d : act == kSwish ? f.gain * d : gained * d);
    }
    if constexpr (bent && is_piecewise_linear(act)) second[i] = A(0);
  }
}

// --- tiles ---

// A matrix per sample. Of planes its rows are channels, else its columns are. An item of work is a run of memory, whose tiles
// prefetchers follow, or, for sums across the rows of planes, a band of their columns.
struct Layout {
  int64_t samples, rows, cols;
  bool planes, bands = false;

  int64_t tile_cols() const { return std::min(cols, kTile); }
  int64_t item_cols() const { return std::min(cols, bands ? kBandCols : kItem); }
  int64_t item_rows() const {
    return std::clamp<int64_t>(kItem / (bands ? tile_cols() : item_cols()), 1, std::min(kItemRows, rows));
  }
  int64_t col_blocks() const { return (cols + item_cols() - 1) / item_cols(); }
  int64_t row_blocks() const { return (rows + item_rows() - 1) / item_rows(); }
};

struct Tile {
  int64_t at, rows, cols;  // a run of memory: one row of those it belongs to, or a part of it, or several whole ones
  bool planes;
  int64_t size() const { return rows * cols; }
};

// What is added and multiplied, of this tile: by channel, and by pixel (null: nothing).
template <class A>
struct Operands {
  const A *scale, *b, *noise;
};

// body(i, scale x + noise + b) for the i-th number of a tile.
template <class T, class A, class Body>
GK_INLINE void for_affine(const T* x, Operands<A> o, Tile t, const Body& body) {
  x += t.at;
  for (int64_t r = 0; r < t.rows; ++r, x += t.cols) {
    if (!t.planes) {
      const A noise = o.noise ? o.noise[r] : A(0);
      for (int64_t j = 0; j < t.cols; ++j) body(r * t.cols + j, o.scale[j] * A(x[j]) + (o.b[j] + noise));
    } else if (o.noise) {
      const A scale = o.scale[r], b = o.b[r];
      for (int64_t j = 0; j < t.cols; ++j) body(r * t.cols + j, scale * A(x[j]) + (b + o.noise[j]));
    } else {
      const A scale = o.scale[r], b = o.b[r];
      for (int64_t j = 0; j < t.cols; ++j) body(r * t.cols + j, scale * A(x[j]) + b);
    }
  }
}

template <class T, class A>
GK_MULTIVERSION void affine(const T* x, Operands<A> o, A* __restrict u, Tile t) {
  for_affine(x, o, t, [&](int64_t i, A value) GK_INLINE_LAMBDA { u[i] = value; });
}

template <class T, class A>
GK_MULTIVERSION void load(const T* x, A* __restrict u, Tile t) {
  for (int64_t i = 0; i < t.size(); ++i) u[i] = A(x[t.at + i]);
}

template <class T, class A>
GK_MULTIVERSION void store(const A* u, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = T(u[i]);
}

// y = scale u.
template <class T, class A>
GK_MULTIVERSION void store_scaled(const A* u, const A* scale, T* __restrict y, Tile t) {
  for (int64_t r = 0; r < t.rows; ++r, y += t.cols, u += t.cols) {
    if (t.planes) {
      const A s = scale[r];
      for (int64_t j = 0; j < t.cols; ++j) y[j] = T(s * u[j]);
    } else {
      for (int64_t j = 0; j < t.cols; ++j) y[j] = T(scale[j] * u[j]);
    }
  }
}

// Sums of u over each row of the tile are added to `sums`. In double: the terms are in the cache, so it costs no time.
template <class A>
GK_MULTIVERSION void add_row_sums(const A* u, double* __restrict sums, Tile t) {
  for (int64_t r = 0; r < t.rows; ++r, u += t.cols) {
    double lanes[kLanes] = {}, rest = 0;
    int64_t j = 0;
    for (; j + kLanes <= t.cols; j += kLanes)
      for (int k = 0; k < kLanes; ++k) lanes[k] += u[j + k];
    for (; j < t.cols; ++j) rest += u[j];
    if (t.cols >= kLanes)
      for (int width = kLanes / 2; width; width /= 2)
        for (int k = 0; k < width; ++k) lanes[k] += lanes[k + width];
    sums[r] += lanes[0] + rest;
  }
}

template <class A>
GK_MULTIVERSION void add_col_sums(const A* u, double* __restrict sums, Tile t) {
  for (int64_t r = 0; r < t.rows; ++r, u += t.cols)
    for (int64_t j = 0; j < t.cols; ++j) sums[j] += u[j];
}

// --- piecewise linear functions ---

// u > 0 ? up u : down u, then the limit.
template <class A>
struct Slopes {
  A up, down, limit, sign;  // sign: that of the gain, with which y > 0 where u > 0

  Slopes(int64_t act, const Shape<A>& f)
      : up(f.gain),
        down(act == kLinear ? f.gain : act == kReLU ? A(0) : f.gain * f.alpha),
        limit(f.limit),
        sign(f.gain < 0 ? A(-1) : A(1)) {}
};

template <class A>
GK_INLINE A bent(A u, Slopes<A> f) {
  const A y = u > 0 ? f.up * u : f.down * u, below = y > f.limit ? f.limit : y;
  return below < -f.limit ? -f.limit : below;
}

// y = bent(scale x + noise + b).
template <class T, class A>
GK_MULTIVERSION void bend_affine(const T* x, Operands<A> o, Slopes<A> f, T* __restrict y, Tile t) {
  for_affine(x, o, t, [&](int64_t i, A u) GK_INLINE_LAMBDA { y[i] = T(bent(u, f)); });
}

// The derivative of `bent` from its result y.
template <class A>
GK_INLINE A slope_at(A y, Slopes<A> f) {
  return y >= f.limit || y <= -f.limit ? A(0) : f.sign * y > 0 ? f.up : f.down;
}

// d_grad = (v + v_noise + v_b) f'(u), from the y that was kept.
template <class T, class A>
GK_MULTIVERSION void straighten_affine(const T* v, Operands<A> o, const T* saved, Slopes<A> f, T* __restrict d_grad, Tile t) {
  saved += t.at;
  for_affine(v, o, t, [&](int64_t i, A q) GK_INLINE_LAMBDA { d_grad[i] = T(q * slope_at(A(saved[i]), f)); });
}

// Where a tile's sums of t and of x t go, by channel, and of t by pixel; null where nobody wants them.
struct SumsOfTile {
  double *b, *scale, *noise;
};

// t = grad f'(u), dx = scale t, for n <= kLanes elements of a row; t and, where asked for, x t are added to the lanes of sums
// along the row and to the sums across rows.
template <bool planes, bool from_y, class T, class A>
GK_INLINE void straighten_lanes(const T* grad, const T* saved, const A* scales, const A* shifts, const A* noises, Slopes<A> f,
                                T* __restrict dx, double* __restrict along, double* __restrict along_x,
                                double* __restrict across, double* __restrict across_x, int64_t n) {
  A ts[kLanes], xts[kLanes];
  for (int64_t k = 0; k < n; ++k) {
    const A x = A(saved[k]), scale = scales[planes ? 0 : k];
    const A u = from_y ? f.sign * x : scale * x + (shifts[planes ? 0 : k] + (noises ? noises[planes ? k : 0] : A(0)));
    const A slope = u > 0 ? f.up : f.down, y = from_y ? x : slope * u;
    const A t = A(grad[k]) * (y >= f.limit || y <= -f.limit ? A(0) : slope);
    dx[k] = T(scale * t);
    ts[k] = t;
    xts[k] = x * t;
  }
  if (along)
    for (int64_t k = 0; k < n; ++k) along[k] += ts[k];
  if (along_x)
    for (int64_t k = 0; k < n; ++k) along_x[k] += xts[k];
  if (across)
    for (int64_t k = 0; k < n; ++k) across[k] += ts[k];
  if (across_x)
    for (int64_t k = 0; k < n; ++k) across_x[k] += xts[k];
}

GK_INLINE double sum_of_lanes(double* lanes) {
  for (int width = kLanes / 2; width; width /= 2)
    for (int k = 0; k < width; ++k) lanes[k] += lanes[k + width];
  return lanes[0];
}

template <bool planes, bool from_y, class T, class A>
GK_MULTIVERSION void straighten(const T* grad, const T* saved, Operands<A> o, Slopes<A> f, T* __restrict dx, SumsOfTile sums,
                                Tile t) {
  grad += t.at;
  saved += t.at;
  double* const along = planes ? sums.b : sums.noise;
  double* const along_x = planes ? sums.scale : nullptr;
  for (int64_t r = 0; r < t.rows; ++r, grad += t.cols, saved += t.cols, dx += t.cols) {
    double lanes[kLanes] = {}, lanes_x[kLanes] = {};
    for (int64_t j = 0; j < t.cols; j += kLanes) {
      const int64_t channel = planes ? r : j, pixel = planes ? j : r;
      const A* noises = o.noise ? o.noise + pixel : nullptr;
      double* const across = planes ? (sums.noise ? sums.noise + j : nullptr) : (sums.b ? sums.b + j : nullptr);
      double* const across_x = planes || !sums.scale ? nullptr : sums.scale + j;
      const auto run = [&](int64_t n) __attribute__((always_inline)) {
        straighten_lanes<planes, from_y>(grad + j, saved + j, o.scale + channel, o.b + channel, noises, f, dx + j,
                                         along ? lanes : nullptr, along_x ? lanes_x : nullptr, across, across_x, n);
      };
      j + kLanes <= t.cols ? run(kLanes) : run(t.cols - j);
    }
    if (along) along[r] += sum_of_lanes(lanes);
    if (along_x) along_x[r] += sum_of_lanes(lanes_x);
  }
}

// --- the others, through buffers ---

template <class A>
GK_MULTIVERSION void multiply(const A* a, A* __restrict b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) b[i] *= a[i];
}

// q, how far u moves, becomes the gradient of grad; second that of u; grad becomes t, the gradient at u in the first place.
template <class A>
GK_MULTIVERSION void bend_back(A* __restrict q, const A* first, A* __restrict second, A* __restrict grad, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    second[i] *= q[i] * grad[i];
    q[i] *= first[i];
    grad[i] *= first[i];
  }
}

// a += scale b over a tile, with one scale per channel.
template <class A>
GK_MULTIVERSION void add_scaled(const A* b, const A* scale, A* __restrict a, Tile t) {
  for (int64_t r = 0; r < t.rows; ++r, a += t.cols, b += t.cols)
    for (int64_t j = 0; j < t.cols; ++j) a[j] += (t.planes ? scale[r] : scale[j]) * b[j];
}

template <class A>
GK_MULTIVERSION void multiply_add(const A* a, const A* b, const A* c, A* __restrict d, int64_t n) {
  for (int64_t i = 0; i < n; ++i) d[i] = a[i] * b[i] + c[i] * d[i];
}

// --- arguments ---

// Planes or rows, in order: pixels have one index.
bool is_planes(const Tensor& x) { return x.is_contiguous(); }

bool is_rows(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  int64_t expected = 1;
  const auto fits = [&](size_t i) {
    const bool fit = sizes[i] == 1 || strides[i] == expected;
    expected *= sizes[i];
    return fit;
  };
  bool fit = fits(1);
  for (size_t i = sizes.size() - 1; i > 1; --i) fit = fits(i) && fit;
  return fits(0) && fit;
}

Tensor planes_or_rows(const Tensor& x) {
  if (x.numel() == 0) return torch::stable::new_empty(x, x.sizes());  // its strides mean nothing
  return is_planes(x) || is_rows(x) ? x : as_contiguous(x);
}

using Maybe = std::optional<Tensor>;

Layout layout_of(const Tensor& x, bool per_sample) {
  const int64_t n = x.size(0), c = x.size(1);
  if (x.numel() == 0) return {0, 1, 1, true};
  const int64_t pixels = x.numel() / (n * c);
  if (is_planes(x) && (pixels > 1 || c == 1)) return {n, c, pixels, true};
  return per_sample ? Layout{n, pixels, c, false} : Layout{1, n * pixels, c, false};
}

int64_t pixels_of(const Tensor& x) {
  int64_t pixels = 1;
  for (int64_t i = 2; i < x.dim(); ++i) pixels *= x.size(i);
  return pixels;
}

void check_side(const char* op, const char* name, const Maybe& side, const Tensor& x, const std::vector<int64_t>& shape) {
  if (!side) return;
  check_cpu(op, name, *side);
  const auto sizes = side->sizes();
  GK_CHECK(std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), op, ": ", name, " must have shape ",
           shape_text(shape), ", got ", shape_text(sizes));
  const ScalarType narrow = x.scalar_type(), wide = accumulate_type(narrow);
  GK_CHECK(side->scalar_type() == narrow || side->scalar_type() == wide, op, ": ", name, " must be ",
           torch::headeronly::toString(narrow), narrow == wide ? "" : " or Float", ", got ",
           torch::headeronly::toString(side->scalar_type()));
}

std::vector<int64_t> noise_shape(const Tensor& x, int64_t samples) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape[0] = samples;
  shape[1] = 1;
  return shape;
}

int64_t noise_samples(const Tensor& x, const Maybe& noise) { return noise && noise->dim() && noise->size(0) == 1 ? 1 : x.size(0); }

void check(const char* op, const Tensor& x, const Maybe& scale, const Maybe& noise, const Maybe& b, int64_t act,
           std::optional<double> clamp) {
  check_cpu(op, "x", x);
  GK_CHECK(x.dim() >= 2, op, ": x must have shape (N, C, ...), got ", shape_text(x.sizes()));
  check_side(op, "scale", scale, x, {x.size(0), x.size(1)});
  check_side(op, "noise", noise, x, noise_shape(x, noise_samples(x, noise)));
  check_side(op, "b", b, x, {x.size(1)});
  GK_CHECK(0 <= act && act < kActivations, op, ": act must be the number of an activation, 0 to ", kActivations - 1, ", got ",
           act);
  GK_CHECK(!clamp || *clamp >= 0, op, ": clamp must be >= 0, got ", *clamp);
}

bool keeps_y(const Maybe& scale, int64_t act, double alpha) {
  return !scale && act != kSwish && (act != kLeakyReLU || alpha >= 0);
}

// The elements of t as A, or `fill`.
template <class A>
struct Vector {
  Tensor kept;
  std::vector<A> filled;
  const A* values = nullptr;

  Vector(const Maybe& t, int64_t length, A fill) {
    if (t) {
      kept = *t;
      const auto dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
      if (kept.scalar_type() != dtype) {
        Tensor cast = torch::stable::new_empty(kept, kept.sizes(), dtype);
        kept = torch::stable::copy_(cast, kept);
      }
      kept = as_contiguous(kept);
      values = data<A>(kept);
    } else if (length) {
      filled.assign(length, fill);
      values = filled.data();
    }
  }
};

// scale, b and noise of every sample, those that are absent as ones, zeros and null.
template <class A>
struct Sides {
  Vector<A> scale, b, noise;
  Layout layout;
  int64_t scale_step, noise_step;  // from one sample to the next

  Sides(const Layout& layout, const Tensor& x, const Maybe& scale, const Maybe& noise, const Maybe& b, A no_scale)
      : scale(scale, x.size(1), no_scale),
        b(b, x.size(1), A(0)),
        noise(noise, 0, A(0)),
        layout(layout),
        scale_step(scale ? x.size(1) : 0),
        noise_step(noise_samples(x, noise) == 1 ? 0 : pixels_of(x)) {}

  Operands<A> at(int64_t sample, int64_t row, int64_t col) const {
    const int64_t channel = layout.planes ? row : col, pixel = layout.planes ? col : row;
    return {scale.values + sample * scale_step + channel, b.values + channel,
            noise.values ? noise.values + sample * noise_step + pixel : nullptr};
  }
};

// body(tile, sample, row, col, item) over every tile; the tiles of an item are done in turn by one thread.
struct Item {
  int64_t sample, row_block, col_block;
};

template <class Body>
void for_each_tile(const Layout& layout, const Body& body) {
  const int64_t item_rows = layout.item_rows(), item_cols = layout.item_cols(), tile_cols = layout.tile_cols();
  const int64_t row_blocks = layout.row_blocks(), col_blocks = layout.col_blocks(), step = std::max<int64_t>(1, kTile / tile_cols);
  const int64_t grain = std::max<int64_t>(1, 2 * kChunk / (item_rows * item_cols));
  torch::stable::parallel_for(0, layout.samples * row_blocks * col_blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Item item{i / (row_blocks * col_blocks), i / col_blocks % row_blocks, i % col_blocks};
      const int64_t end_row = std::min(layout.rows, (item.row_block + 1) * item_rows);
      const int64_t end_col = std::min(layout.cols, (item.col_block + 1) * item_cols);
      for (int64_t row = item.row_block * item_rows; row < end_row; row += step) {
        for (int64_t col = item.col_block * item_cols; col < end_col; col += tile_cols) {
          const int64_t at = (item.sample * layout.rows + row) * layout.cols + col;
          const Tile tile{at, std::min(step, end_row - row), std::min(tile_cols, end_col - col), layout.planes};
          body(tile, row, col, item);
        }
      }
    }
    finish_streams();
  });
}

// Results of a tile: write(to) writes them to memory, or to a buffer from which they go around the cache.
template <class T>
struct Result {
  T* data;
  bool around;

  explicit Result(const Tensor& t) : data(mutable_data<T>(t)), around(outgrows_cache(t)) {}

  template <class Write>
  void operator()(const Tile& tile, const Write& write) const {
    if (!around) return write(data + tile.at);
    T buffer[kTile];
    write(buffer);
    stream(buffer, data + tile.at, tile.size());
  }
};

// Sums over pixels, by sample and channel, or over channels, by sample and pixel: each item of work adds to rows of its own,
// which are summed in a fixed order.
template <class A>
class Sums {
 public:
  Sums(const Layout& layout, bool wanted, bool over_rows)
      : layout_(layout),
        over_rows_(over_rows),
        length_(over_rows ? layout.cols : layout.rows),
        blocks_(over_rows ? layout.row_blocks() : layout.col_blocks()),
        partial_(wanted ? layout.samples * blocks_ * length_ : 0) {}

  // The sums of a tile, null where none are wanted.
  double* of(int64_t row, int64_t col, const Item& item) {
    if (partial_.empty()) return nullptr;
    return &partial_[(item.sample * blocks_ + (over_rows_ ? item.row_block : item.col_block)) * length_ + (over_rows_ ? col : row)];
  }

  void add(const A* values, const Tile& tile, int64_t row, int64_t col, const Item& item) {
    if (double* sums = of(row, col, item)) over_rows_ ? add_col_sums(values, sums, tile) : add_row_sums(values, sums, tile);
  }

  // (samples, length), or (length,) with the samples summed too; samples that were merged lie along the length.
  void write(const Tensor& out, bool over_samples) const {
    const int64_t groups = over_samples ? 1 : layout_.samples, terms = over_samples ? layout_.samples * blocks_ : blocks_;
    for (int64_t group = 0; group < groups; ++group) {
      std::vector<double> total(length_);
      for (int64_t i = 0; i < terms; ++i)
        for (int64_t j = 0; j < length_; ++j) total[j] += partial_[(group * terms + i) * length_ + j];
      for (int64_t j = 0; j < length_; ++j) mutable_data<A>(out)[group * length_ + j] = A(total[j]);
    }
  }

 private:
  Layout layout_;
  bool over_rows_;
  int64_t length_, blocks_;
  std::vector<double> partial_;
};

// The gradients of scale, noise and b; those of absent arguments have no elements.
template <class A>
struct SideGradients {
  Sums<A> scale, noise, b;

  SideGradients(const Layout& layout, bool scale, bool noise, bool b)
      : scale(layout, scale, !layout.planes), noise(layout, noise, layout.planes), b(layout, b, !layout.planes) {}
};

struct SideOutputs {
  Tensor scale, noise, b;

  SideOutputs(const Tensor& x, const Maybe& scale_, const Maybe& noise_, const Maybe& b_) {
    using Sizes = std::vector<int64_t>;
    const auto make = [&](const Sizes& sizes) {
      Tensor out = torch::stable::new_empty(x, sizes, accumulate_type(x.scalar_type()));
      return x.numel() == 0 ? torch::stable::zero_(out) : out;  // sums over nothing
    };
    scale = make(scale_ ? Sizes{x.size(0), x.size(1)} : Sizes{0});
    noise = make(noise_ ? noise_shape(x, noise_samples(x, noise_)) : Sizes{0});
    b = make(b_ ? Sizes{x.size(1)} : Sizes{0});
  }

  template <class A>
  void write(const SideGradients<A>& sums, const Tensor& x) const {
    if (x.numel() == 0) return;
    if (scale.numel()) sums.scale.write(scale, false);
    if (noise.numel()) sums.noise.write(noise, noise.size(0) == 1);
    if (b.numel()) sums.b.write(b, true);
  }
};

// body.operator()<act>() for an activation known at run time only, this one or a later one.
template <int act, class Body>
void with_activation(int64_t wanted, const Body& body) {
  if constexpr (act < kActivations) wanted == act ? body.template operator()<act>() : with_activation<act + 1>(wanted, body);
}

// The limit is rounded as y is when it is stored: backward recognises it in y.
template <class T>
Shape<accumulate_t<T>> shape_of(double alpha, double gain, std::optional<double> clamp) {
  using A = accumulate_t<T>;
  return {A(alpha), A(gain), clamp ? A(T(A(*clamp))) : std::numeric_limits<A>::quiet_NaN()};
}

template <bool bent, class A>
void differentiate_by(int64_t act, bool from_y, const A* in, A* first, A* second, int64_t n, const Shape<A>& f) {
  with_activation<bent ? kLinear : kTanh>(act, [&]<int kAct>() {
    if constexpr (kAct != kSwish)
      if (from_y) return differentiate<kAct, true, bent>(in, first, second, n, f);
    differentiate<kAct, false, bent>(in, first, second, n, f);
  });
}

Tensor bias_act(const Tensor& x_, const Maybe& scale, const Maybe& noise, const Maybe& b, int64_t act, double alpha,
                double gain, std::optional<double> clamp) {
  const char* op = "bias_act";
  check(op, x_, scale, noise, b, act, clamp);
  const Tensor x = planes_or_rows(x_);
  Tensor y = on_huge_pages(torch::stable::empty_like(x));
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const Layout layout = layout_of(x, scale || noise_samples(x, noise) == 1);
    const Sides<A> sides(layout, x, scale, noise, b, A(1));
    const auto f = shape_of<T>(alpha, gain, clamp);
    const Result<T> result(y);
    if (is_piecewise_linear(act))
      return for_each_tile(layout, [&](const Tile& tile, int64_t row, int64_t col, const Item& item) {
        const auto operands = sides.at(item.sample, row, col);
        result(tile, [&](T* to) { bend_affine(data<T>(x), operands, Slopes<A>(act, f), to, tile); });
      });
    for_each_tile(layout, [&](const Tile& tile, int64_t row, int64_t col, const Item& item) {
      A u[kTile];
      affine(data<T>(x), sides.at(item.sample, row, col), u, tile);
      with_activation<kTanh>(act, [&]<int kAct>() { activate<kAct>(u, tile.size(), f); });
      result(tile, [&](T* to) { store(u, to, tile.size()); });
    });
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bias_act_bwd(const Tensor& grad_, const Tensor& saved_, const Maybe& scale,
                                                        const Maybe& noise, const Maybe& b, int64_t act, double alpha,
                                                        double gain, std::optional<double> clamp) {
  const char* op = "bias_act_bwd";
  check(op, saved_, scale, noise, b, act, clamp);
  check_cpu(op, "grad", grad_);
  check_same_shape(op, "grad", grad_, "saved", saved_);
  const Tensor saved = planes_or_rows(saved_), grad = in_layout_of(saved, grad_);
  Tensor dx = on_huge_pages(torch::stable::empty_like(saved));
  const SideOutputs out(saved, scale, noise, b);
  dispatch_floating(op, saved.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    Layout layout = layout_of(saved, scale || noise_samples(saved, noise) == 1);
    layout.bands = layout.planes && noise;
    const bool from_y = keeps_y(scale, act, alpha);
    const Sides<A> sides(layout, saved, scale, from_y ? std::nullopt : noise, from_y ? std::nullopt : b, A(1));
    SideGradients<A> sums(layout, bool(scale), bool(noise), bool(b));
    const auto f = shape_of<T>(alpha, gain, clamp);
    const Result<T> result(dx);
    for_each_tile(layout, [&](const Tile& tile, int64_t row, int64_t col, const Item& item) {
      const auto operands = sides.at(item.sample, row, col);
      if (is_piecewise_linear(act)) {
        const auto pass = layout.planes ? from_y ? straighten<true, true, T, A> : straighten<true, false, T, A>
                          : from_y      ? straighten<false, true, T, A>
                                        : straighten<false, false, T, A>;
        const SumsOfTile of_tile{sums.b.of(row, col, item), sums.scale.of(row, col, item), sums.noise.of(row, col, item)};
        return result(tile, [&](T* to) { pass(data<T>(grad), data<T>(saved), operands, Slopes<A>(act, f), to, of_tile, tile); });
      }
      A in[kTile], t[kTile], first[kTile];
      affine(data<T>(saved), operands, in, tile);
      differentiate_by<false, A>(act, from_y, in, first, nullptr, tile.size(), f);
      load(data<T>(grad), t, tile);
      multiply(first, t, tile.size());
      result(tile, [&](T* to) { store_scaled(t, operands.scale, to, tile); });
      sums.b.add(t, tile, row, col, item);
      sums.noise.add(t, tile, row, col, item);
      if (scale) {
        load(data<T>(saved), in, tile);
        multiply(in, t, tile.size());
        sums.scale.add(t, tile, row, col, item);
      }
    });
    out.write(sums, saved);
  });
  return {dx, out.scale, out.noise, out.b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bias_act_bwd_bwd(
    const Tensor& v_, const Maybe& v_scale, const Maybe& v_noise, const Maybe& v_b, const Tensor& grad_, const Tensor& saved_,
    const Maybe& scale, const Maybe& noise, const Maybe& b, int64_t act, double alpha, double gain,
    std::optional<double> clamp) {
  const char* op = "bias_act_bwd_bwd";
  check(op, saved_, scale, noise, b, act, clamp);
  check_cpu(op, "grad", grad_);
  check_cpu(op, "v", v_);
  check_same_shape(op, "grad", grad_, "saved", saved_);
  check_same_shape(op, "v", v_, "saved", saved_);
  check_side(op, "v_scale", v_scale, saved_, {saved_.size(0), saved_.size(1)});
  check_side(op, "v_noise", v_noise, saved_, noise_shape(saved_, noise_samples(saved_, v_noise)));
  check_side(op, "v_b", v_b, saved_, {saved_.size(1)});
  GK_CHECK(scale || !v_scale, op, ": v_scale must be absent where scale is");
  const bool from_y = keeps_y(scale, act, alpha), straight = from_y && is_piecewise_linear(act);
  const Tensor saved = planes_or_rows(saved_), grad = straight ? grad_ : in_layout_of(saved, grad_), v = in_layout_of(saved, v_);
  Tensor d_grad = on_huge_pages(torch::stable::empty_like(saved));
  Tensor d_saved = straight ? torch::stable::new_empty(saved, std::vector<int64_t>{0})
                            : on_huge_pages(torch::stable::empty_like(saved));
  const Maybe of_x = std::nullopt;
  const SideOutputs out(saved, scale, from_y ? of_x : noise, from_y ? of_x : b);
  dispatch_floating(op, saved.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    Layout layout = layout_of(saved, scale || v_scale || noise_samples(saved, noise) == 1 || noise_samples(saved, v_noise) == 1);
    layout.bands = layout.planes && noise && !from_y;
    const Sides<A> sides(layout, saved, scale, from_y ? of_x : noise, from_y ? of_x : b, A(1));
    const Sides<A> v_sides(layout, saved, v_scale, v_noise, v_b, A(0));
    SideGradients<A> sums(layout, bool(scale), !from_y && noise, !from_y && b);
    const auto f = shape_of<T>(alpha, gain, clamp);
    const Result<T> result(d_grad), result_saved(d_saved);
    if (straight)
      return for_each_tile(layout, [&](const Tile& tile, int64_t row, int64_t col, const Item& item) {
        const auto operands = sides.at(item.sample, row, col), v_operands = v_sides.at(item.sample, row, col);
        const Operands<A> q{operands.scale, v_operands.b, v_operands.noise};
        result(tile, [&](T* to) { straighten_affine(data<T>(v), q, data<T>(saved), Slopes<A>(act, f), to, tile); });
      });
    for_each_tile(layout, [&](const Tile& tile, int64_t row, int64_t col, const Item& item) {
      A x[kTile], t[kTile], q[kTile], first[kTile], second[kTile];
      const auto operands = sides.at(item.sample, row, col), v_operands = v_sides.at(item.sample, row, col);
      const int64_t n = tile.size();
      affine(data<T>(saved), operands, x, tile);
      differentiate_by<true, A>(act, from_y, x, first, second, n, f);
      affine(data<T>(v), Operands<A>{operands.scale, v_operands.b, v_operands.noise}, q, tile);
      load(data<T>(saved), x, tile);
      if (v_scale) add_scaled(x, v_operands.scale, q, tile);
      load(data<T>(grad), t, tile);
      bend_back(q, first, second, t, n);
      result(tile, [&](T* to) { store(q, to, n); });
      sums.b.add(second, tile, row, col, item);
      sums.noise.add(second, tile, row, col, item);
      if (scale) {
        load(data<T>(v), first, tile);
        multiply_add(second, x, t, first, n);
        sums.scale.add(first, tile, row, col, item);
      }
      if (v_scale) {
        std::fill_n(q, n, A(0));
        add_scaled(second, operands.scale, q, tile);
        add_scaled(t, v_operands.scale, q, tile);
        result_saved(tile, [&](T* to) { store(q, to, n); });
      } else {
        result_saved(tile, [&](T* to) { store_scaled(second, operands.scale, to, tile); });
      }
    });
    out.write(sums, saved);
  });
  return {d_grad, d_saved, out.scale, out.noise, out.b};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("bias_act", TORCH_BOX(&bias_act));
  m.impl("bias_act_bwd", TORCH_BOX(&bias_act_bwd));
  m.impl("bias_act_bwd_bwd", TORCH_BOX(&bias_act_bwd_bwd));
}

}  // namespace gankernels

// Power iteration, W / sigma and its derivatives for all layers of a network at once.
//
// A weight is a matrix: dimension `dim` gives the rows, the others, in their order, the columns. In memory a dense
// weight is (A, O, B) with O the rows: A = 1 for the usual row-major matrix ("whole rows"), else the columns are split
// over A slices. Vectors of the columns' length are kept in memory order while working, so no weight is ever permuted
// or copied.
//
// With whole rows an iteration reads W once: t_i = <W_i, v>, and z += t_i W_i while row i is still in cache. Then
// u = t / |t| and W^T u = z / |t|. Slices need a pass for t and one for z.
//
// Work is cut into items by shape alone; an item's sums do not depend on who computes it, nor their order of addition.
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>

#include "../spectral_norm.h"
#include "pages.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kItem = 1 << 16;       // elements of a small item
constexpr int64_t kItemsPerLayer = 16;   // of a large layer: each brings a vector of the columns' length to be added up
constexpr int64_t kTile = 256;           // slices are walked in periods of B of at least this length
constexpr int64_t kRun = 64;             // slices summed in A before the sums go to double
constexpr int64_t kSerial = 2 * kChunk;  // elements below which other threads are not woken
constexpr int kRows = 4;                 // rows that share the loads of v and z

// --------------------------------------------------------------------------------------------------------------- loops

// dots[r] = <w_r, v> for R consecutive rows.
template <class T, class A, int R, class V = A>
GK_MULTIVERSION void dot_rows(const T* w, const V* v, int64_t n, double* dots) {
  for (int r = 0; r < R; ++r) dots[r] = 0;
  int64_t i = 0;
  while (i + kLanes <= n) {
    A lanes[R][kLanes] = {};
    const int64_t stop = std::min(n, i + 16 * kLanes);  // short runs in A, so that float sums stay exact to a few ulp
    for (; i + kLanes <= stop; i += kLanes)
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < kLanes; ++j) lanes[r][j] += A(w[r * n + i + j]) * A(v[i + j]);
    for (int r = 0; r < R; ++r) {
      double sum = 0;
      for (int j = 0; j < kLanes; ++j) sum += lanes[r][j];
      dots[r] += sum;
    }
  }
  for (; i < n; ++i)
    for (int r = 0; r < R; ++r) dots[r] += double(A(w[r * n + i]) * A(v[i]));
}

template <class T, class A>
double dot(const T* x, const T* y, int64_t n) {
  double result;
  dot_rows<T, A, 1, T>(x, y, n, &result);
  return result;
}

// z += sum_r c_r w_r over R consecutive rows.
template <class T, class A, int R>
GK_MULTIVERSION void add_rows(const T* w, const A* c, int64_t n, A* __restrict z) {
  for (int64_t i = 0; i < n; ++i) {
    A sum = z[i];
    for (int r = 0; r < R; ++r) sum += c[r] * A(w[r * n + i]);
    z[i] = sum;
  }
}

template <class A>
GK_MULTIVERSION double squared_norm(const A* x, int64_t n) {
  double lanes[kLanes] = {}, sum = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += double(x[i + j]) * double(x[i + j]);
  for (int j = 0; j < kLanes; ++j) sum += lanes[j];
  for (; i < n; ++i) sum += double(x[i]) * double(x[i]);
  return sum;
}

// out_i += w_i tile_(i mod period)
template <class T, class A>
GK_MULTIVERSION void multiply_add_tiled(const T* w, const A* tile, int64_t period, int64_t n, A* __restrict out) {
  for (int64_t base = 0; base < n; base += period) {
    const int64_t m = std::min(period, n - base);
    for (int64_t j = 0; j < m; ++j) out[base + j] += A(w[base + j]) * tile[j];
  }
}

// sums_(i mod period) += w_i x_i
template <class T, class A>
GK_MULTIVERSION void reduce_tiled(const T* w, const A* x, int64_t period, int64_t n, A* __restrict sums) {
  for (int64_t base = 0; base < n; base += period) {
    const int64_t m = std::min(period, n - base);
    for (int64_t j = 0; j < m; ++j) sums[j] += A(w[base + j]) * x[base + j];
  }
}

template <class T, class A>
GK_MULTIVERSION void divide(const T* w, T* out, int64_t n, A inverse) {
  for (int64_t i = 0; i < n; ++i) out[i] = T(inverse * A(w[i]));
}

// out = a x + b v: one row of a X + c u v^T.
template <class T, class A>
GK_MULTIVERSION void rank_one_row(const T* x, const A* v, T* out, int64_t n, A a, A b) {
  for (int64_t i = 0; i < n; ++i) out[i] = T(a * A(x[i]) + b * v[i]);
}

// The same for one slice, with u spread over its columns and v as a tile.
template <class T, class A>
GK_MULTIVERSION void rank_one_tiled(const T* x, const A* u, const A* tile, int64_t period, T* out, int64_t n, A a,
                                    A c) {
  for (int64_t base = 0; base < n; base += period) {
    const int64_t m = std::min(period, n - base);
    for (int64_t j = 0; j < m; ++j) out[base + j] = T(a * A(x[base + j]) + c * u[base + j] * tile[j]);
  }
}

template <class T, class A>
GK_MULTIVERSION void combine(const T* x, const T* y, T* out, int64_t n, A a, A b) {
  for (int64_t i = 0; i < n; ++i) out[i] = T(a * A(x[i]) + b * A(y[i]));
}

// ---------------------------------------------------------------------------------------------------- layers and items

// Rows of a whole-rows matrix, else slices.
struct Item {
  int64_t layer, begin, end;
};

// The layers a call works on: all, or those a derivative is asked for.
struct Group {
  std::vector<const Tensor*> weights;
  std::vector<const Matrix*> matrices;
  std::vector<int64_t> u_at, v_at;  // in uv
  std::vector<Item> items;
  std::vector<int64_t> first_item;  // of each layer, and the end
  int64_t vectors_length = 0, elements = 0;

  int64_t count() const { return static_cast<int64_t>(weights.size()); }
  const Matrix& matrix(const Item& item) const { return *matrices[item.layer]; }
  int64_t begin(const Item& item) const { return item.begin * unit(item); }  // in the weight's memory
  int64_t size(const Item& item) const { return (item.end - item.begin) * unit(item); }
  int64_t unit(const Item& item) const {
    return matrix(item).whole_rows() ? matrix(item).columns : matrix(item).slice();
  }
};

Group group_of(const Layers& layers, const std::vector<int64_t>& chosen) {
  Group group;
  for (const int64_t layer : chosen) {
    const Matrix& m = layers.matrices[layer];
    const int64_t units = m.whole_rows() ? m.rows : m.slices;
    const int64_t most = std::clamp<int64_t>((m.elements() + kItem - 1) / kItem, 1, kItemsPerLayer);
    const int64_t share = std::max<int64_t>(1, ((units + most - 1) / most + kRows - 1) / kRows * kRows);
    group.first_item.push_back(static_cast<int64_t>(group.items.size()));
    if (m.elements())
      for (int64_t at = 0; at < units; at += share)
        group.items.push_back({group.count(), at, std::min(at + share, units)});
    group.weights.push_back(&layers.weights[layer]);
    group.matrices.push_back(&m);
    group.u_at.push_back(layers.u_at[layer]);
    group.v_at.push_back(layers.v_at[layer]);
    group.vectors_length += m.rows + m.columns;
    group.elements += m.elements();
  }
  group.first_item.push_back(static_cast<int64_t>(group.items.size()));
  return group;
}

Group group_of(const Layers& layers) {
  std::vector<int64_t> all(layers.count());
  std::iota(all.begin(), all.end(), 0);
  return group_of(layers, all);
}

// body(item) by whichever thread is free. `finish(layer)` by the thread that did the layer's last item.
template <class Body, class Finish>
void for_each_item(const Group& group, const Body& body, const Finish& finish) {
  const int64_t items = static_cast<int64_t>(group.items.size());
  std::vector<std::atomic<int64_t>> left(group.count());
  for (int64_t layer = 0; layer < group.count(); ++layer) {
    left[layer].store(group.first_item[layer + 1] - group.first_item[layer], std::memory_order_relaxed);
    if (left[layer].load(std::memory_order_relaxed) == 0) finish(layer);
  }
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      body(i);
      const int64_t layer = group.items[i].layer;
      if (left[layer].fetch_sub(1, std::memory_order_acq_rel) == 1) finish(layer);
    }
  };
  const int64_t threads = group.elements < kSerial ? 1 : std::min<int64_t>(torch::stable::get_num_threads(), items);
  if (threads <= 1) {
    work(0, 1);
  } else {
    torch::stable::parallel_for(0, threads, 1, work);
  }
}

template <class Body>
void for_each_item(const Group& group, const Body& body) {
  for_each_item(group, body, [](int64_t) {});
}

// ------------------------------------------------------------------------------------------------------------- vectors

// u and v of each layer in A, v in the weight's memory order.
template <class A>
struct Vectors {
  std::unique_ptr<A[]> memory;
  std::vector<A*> u, v;
  std::vector<std::vector<int64_t>> maps;

  explicit Vectors(const Group& group) : memory(new A[group.vectors_length]) {
    A* at = memory.get();
    for (const Matrix* m : group.matrices) {
      u.push_back(at);
      v.push_back(at + m->rows);
      at += m->rows + m->columns;
      maps.push_back(m->column_map());
    }
  }

  template <class T>
  void load(int64_t layer, const Matrix& m, const T* stored_u, const T* stored_v) {
    const auto& map = maps[layer];
    for (int64_t i = 0; i < m.rows; ++i) u[layer][i] = A(stored_u[i]);
    for (int64_t i = 0; i < m.columns; ++i) v[layer][i] = A(stored_v[map.empty() ? i : map[i]]);
  }

  template <class T>
  void store(int64_t layer, const Matrix& m, T* stored_u, T* stored_v) const {
    const auto& map = maps[layer];
    for (int64_t i = 0; i < m.rows; ++i) stored_u[i] = T(u[layer][i]);
    for (int64_t i = 0; i < m.columns; ++i) stored_v[map.empty() ? i : map[i]] = T(v[layer][i]);
  }
};

template <class A>
Vectors<A> load_uv(const Group& group, const Tensor& uv) {
  Vectors<A> vectors(group);
  for (int64_t i = 0; i < group.count(); ++i)
    vectors.load(i, *group.matrices[i], data<A>(uv) + group.u_at[i], data<A>(uv) + group.v_at[i]);
  return vectors;
}

// Slices are walked in periods of B.
int64_t period(const Matrix& m) { return std::min(m.slice(), m.inner * ((kTile + m.inner - 1) / m.inner)); }

// One period of v for slice `a`.
template <class A>
void fill_tile(const Matrix& m, const A* v, int64_t slice, A* tile) {
  for (int64_t at = 0; at < period(m); at += m.inner)
    for (int64_t b = 0; b < m.inner; ++b) tile[at + b] = v[slice * m.inner + b];
}

// u spread over the O * B elements of a slice.
template <class A>
std::vector<A> spread(const Matrix& m, const A* u) {
  std::vector<A> wide(m.slice());
  for (int64_t o = 0; o < m.rows; ++o) std::fill_n(wide.data() + o * m.inner, m.inner, u[o]);
  return wide;
}

// t = X v over the item's slices, in runs of slices short enough for sums in A.
template <class T, class A>
void slices_times_v(const Matrix& m, const Item& item, const T* x, const A* v, A* t) {
  std::vector<A> wide(m.slice()), tile(period(m));
  std::vector<double> sums(m.rows, 0.0);
  for (int64_t first = item.begin; first < item.end; first += kRun) {
    std::fill(wide.begin(), wide.end(), A(0));
    for (int64_t a = first; a < std::min(first + kRun, item.end); ++a) {
      fill_tile(m, v, a, tile.data());
      multiply_add_tiled<T, A>(x + a * m.slice(), tile.data(), period(m), m.slice(), wide.data());
    }
    for (int64_t o = 0; o < m.rows; ++o)
      sums[o] = std::accumulate(wide.begin() + o * m.inner, wide.begin() + (o + 1) * m.inner, sums[o]);
  }
  for (int64_t o = 0; o < m.rows; ++o) t[o] = A(sums[o]);
}

// z = X^T u over the item's slices; wide is u spread.
template <class T, class A>
void slices_times_u(const Matrix& m, const Item& item, const T* x, const A* wide, A* z) {
  std::vector<A> sums(period(m));
  for (int64_t a = item.begin; a < item.end; ++a) {
    std::fill(sums.begin(), sums.end(), A(0));
    reduce_tiled<T, A>(x + a * m.slice(), wide, period(m), m.slice(), sums.data());
    A* out = z + a * m.inner;
    std::copy_n(sums.begin(), m.inner, out);
    for (int64_t at = m.inner; at < period(m); at += m.inner)
      for (int64_t b = 0; b < m.inner; ++b) out[b] += sums[at + b];
  }
}

// The power of two at or below |x|: dividing by it loses nothing. 1 for 0, infinity and NaN.
inline double power_of_two(double x) {
  int exponent = 1;
  if (x != 0 && std::isfinite(x)) std::frexp(x, &exponent);
  return std::ldexp(1.0, exponent - 1);
}

// Writes the item's part of t = X v, and z = X^T t / scale of it; returns the scale, by which weights of 1e-25 or 1e25
// neither vanish nor overflow when squared.
template <class T, class A>
double rows_there_and_back(const Matrix& m, const Item& item, const T* x, const A* v, A* t, A* z) {
  const int64_t n = m.columns;
  std::fill_n(z, n, A(0));
  double factor = 0;
  const auto rows = [&]<int R>(int64_t row) {
    double dots[R];
    A c[R];
    dot_rows<T, A, R>(x + row * n, v, n, dots);
    for (int r = 0; r < R; ++r)
      if (factor == 0 && dots[r] != 0) factor = power_of_two(dots[r]);
    for (int r = 0; r < R; ++r) {
      t[row + r] = A(dots[r]);
      c[r] = factor == 0 ? A(dots[r]) : A(dots[r] / factor);
    }
    add_rows<T, A, R>(x + row * n, c, n, z);
  };
  int64_t row = item.begin;
  for (; row + kRows <= item.end; row += kRows) rows.template operator()<kRows>(row);
  for (; row < item.end; ++row) rows.template operator()<1>(row);
  return factor;
}

// u^T X v over the item.
template <class T, class A>
double bilinear(const Matrix& m, const Item& item, const T* x, const A* u, const A* v) {
  double sum = 0;
  if (m.whole_rows()) {
    double dots[kRows];
    int64_t row = item.begin;
    for (; row + kRows <= item.end; row += kRows) {
      dot_rows<T, A, kRows>(x + row * m.columns, v, m.columns, dots);
      for (int r = 0; r < kRows; ++r) sum += dots[r] * double(u[row + r]);
    }
    for (; row < item.end; ++row) {
      dot_rows<T, A, 1>(x + row * m.columns, v, m.columns, dots);
      sum += dots[0] * double(u[row]);
    }
    return sum;
  }
  std::vector<A> t(m.rows);
  slices_times_v<T, A>(m, item, x, v, t.data());
  for (int64_t o = 0; o < m.rows; ++o) sum += double(t[o]) * double(u[o]);
  return sum;
}

// a X + c u v^T over the item.
template <class T, class A>
void rank_one(const Matrix& m, const Item& item, const T* x, const A* u, const A* v, T* out, double a, double c) {
  if (m.whole_rows()) {
    for (int64_t row = item.begin; row < item.end; ++row)
      rank_one_row<T, A>(x + row * m.columns, v, out + row * m.columns, m.columns, A(a), A(c * u[row]));
    return;
  }
  const std::vector<A> wide = spread(m, u);
  std::vector<A> tile(period(m));
  for (int64_t slice = item.begin; slice < item.end; ++slice) {
    fill_tile(m, v, slice, tile.data());
    rank_one_tiled<T, A>(x + slice * m.slice(), wide.data(), tile.data(), period(m), out + slice * m.slice(), m.slice(),
                         A(a), A(c));
  }
}

// torch.nn.functional.normalize: NaN stays NaN.
inline double clamped(double norm, double eps) { return norm < eps ? eps : norm; }

// ---------------------------------------------------------------------------------------------------------------- ops

// One call of power iteration: the vectors and what items and layers do to them.
template <class T, class A>
struct Iteration {
  const Group& group;
  Vectors<A> vectors;
  double eps;
  std::vector<double> sigmas, factors;
  std::vector<int64_t> part_at;  // what an item adds to its layer: z (whole rows) or t (slices)
  std::unique_ptr<A[]> parts;
  std::vector<std::vector<A>> wide;  // u spread, of slices

  Iteration(const Group& group, double eps)
      : group(group),
        vectors(group),
        eps(eps),
        sigmas(group.count(), 0.0),
        factors(group.items.size()),
        wide(group.count()) {
    int64_t length = 0;
    for (const Item& item : group.items) {
      part_at.push_back(length);
      length += group.matrix(item).whole_rows() ? group.matrix(item).columns : group.matrix(item).rows;
    }
    parts.reset(new A[length]);
  }

  const T* weight(const Item& item) const { return data<T>(*group.weights[item.layer]); }
  A* part(int64_t item) const { return parts.get() + part_at[item]; }

  double normalize_u(int64_t layer) {
    const int64_t rows = group.matrices[layer]->rows;
    A* u = vectors.u[layer];
    const double norm = clamped(std::sqrt(squared_norm(u, rows)), eps);
    for (int64_t i = 0; i < rows; ++i) u[i] = A(u[i] / norm);
    return norm;
  }

  // From W^T u in v's place. u^T W v for the new v is |W^T u|^2 / max(|W^T u|, eps).
  void normalize_v(int64_t layer) {
    const int64_t columns = group.matrices[layer]->columns;
    A* v = vectors.v[layer];
    const double square = squared_norm(v, columns), norm = clamped(std::sqrt(square), eps);
    for (int64_t i = 0; i < columns; ++i) v[i] = A(v[i] / norm);
    sigmas[layer] = square / norm;
  }

  void first_pass(int64_t i) {
    const Item& item = group.items[i];
    const Matrix& m = group.matrix(item);
    if (m.whole_rows()) {
      factors[i] =
          rows_there_and_back<T, A>(m, item, weight(item), vectors.v[item.layer], vectors.u[item.layer], part(i));
    } else {
      slices_times_v<T, A>(m, item, weight(item), vectors.v[item.layer], part(i));
    }
  }

  void after_first_pass(int64_t layer) {
    const Matrix& m = *group.matrices[layer];
    const int64_t first = group.first_item[layer], last = group.first_item[layer + 1];
    A *u = vectors.u[layer], *v = vectors.v[layer];
    if (!m.whole_rows() || first == last) std::fill_n(u, m.rows, A(0));
    if (!m.whole_rows()) {
      const A one = 1;
      for (int64_t i = first; i < last; ++i) add_rows<A, A, 1>(part(i), &one, m.rows, u);
      normalize_u(layer);
      wide[layer] = spread(m, u);
      return;
    }
    const double norm = normalize_u(layer);
    std::fill_n(v, m.columns, A(0));
    for (int64_t i = first; i < last; ++i) {
      const A c = A(factors[i] / norm);
      add_rows<A, A, 1>(part(i), &c, m.columns, v);
    }
    normalize_v(layer);
  }

  void run() {
    for_each_item(group, [&](int64_t i) { first_pass(i); }, [&](int64_t layer) { after_first_pass(layer); });
    if (std::all_of(group.matrices.begin(), group.matrices.end(), [](const Matrix* m) { return m->whole_rows(); }))
      return;
    for_each_item(
        group,
        [&](int64_t i) {
          const Item& item = group.items[i];
          const Matrix& m = group.matrix(item);
          if (!m.whole_rows())
            slices_times_u<T, A>(m, item, weight(item), wide[item.layer].data(), vectors.v[item.layer]);
        },
        [&](int64_t layer) {
          if (!group.matrices[layer]->whole_rows()) normalize_v(layer);
        });
  }

  void only_sigma() {
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      factors[i] = bilinear<T, A>(group.matrix(item), item, weight(item), vectors.u[item.layer], vectors.v[item.layer]);
    });
    for (size_t i = 0; i < group.items.size(); ++i) sigmas[group.items[i].layer] += factors[i];
  }
};

std::tuple<Tensor, Tensor> spectral_norm_power_iteration_(TensorList weights, TensorList u, TensorList v,
                                                          std::vector<int64_t> dims, int64_t iterations, double eps) {
  const char* op = "spectral_norm_power_iteration_";
  const Layers layers = layers_of(op, weights, dims);
  check_iteration(op, layers, u, v, iterations, eps);
  const Group group = group_of(layers);
  const auto dtype = accumulate_type(weights[0].scalar_type());
  Tensor uv = torch::stable::new_empty(weights[0], std::vector<int64_t>{layers.uv_length}, dtype);
  Tensor sigma = torch::stable::new_empty(weights[0], std::vector<int64_t>{layers.count()}, dtype);
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    Iteration<T, A> iteration(group, eps);
    Vectors<A>& vectors = iteration.vectors;
    for (int64_t i = 0; i < group.count(); ++i)
      vectors.template load<T>(i, *group.matrices[i], data<T>(u[i]), data<T>(v[i]));
    if (iterations == 0) iteration.only_sigma();
    for (int64_t k = 0; k < iterations; ++k) iteration.run();
    for (int64_t i = 0; i < group.count(); ++i) {
      const Matrix& m = *group.matrices[i];
      mutable_data<A>(sigma)[i] = A(iteration.sigmas[i]);
      vectors.template store<A>(i, m, mutable_data<A>(uv) + group.u_at[i], mutable_data<A>(uv) + group.v_at[i]);
      if (iterations) vectors.template store<T>(i, m, mutable_data<T>(u[i]), mutable_data<T>(v[i]));
    }
  });
  return {uv, sigma};
}

TensorList outputs_like(const Group& group) {
  TensorList out;
  for (const Tensor* w : group.weights) out.push_back(on_huge_pages(torch::stable::empty_like(*w), 0));
  return out;
}

TensorList spectral_normalize(TensorList weights, Tensor uv, Tensor sigma, std::vector<int64_t> dims) {
  const char* op = "spectral_normalize";
  const Layers layers = layers_of(op, weights, dims);
  check_saved(op, layers, uv, sigma);
  const Group group = group_of(layers);
  TensorList out = outputs_like(group);
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      const int64_t begin = group.begin(item);
      divide<T, A>(data<T>(*group.weights[item.layer]) + begin, mutable_data<T>(out[item.layer]) + begin,
                   group.size(item), A(1.0 / data<A>(sigma)[item.layer]));
    });
  });
  return out;
}

TensorList spectral_normalize_bwd(TensorList grads_, TensorList weights, Tensor uv, Tensor sigma,
                                  std::vector<int64_t> dims, std::vector<int64_t> chosen) {
  const char* op = "spectral_normalize_bwd";
  const Layers layers = layers_of(op, weights, dims);
  check_saved(op, layers, uv, sigma);
  check_chosen(op, layers, chosen);
  const TensorList grads = like_weights(op, "grads", layers, chosen, grads_);
  const Group group = group_of(layers, chosen);
  TensorList out = outputs_like(group);
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const Vectors<A> vectors = load_uv<A>(group, uv);
    std::vector<double> parts(group.items.size()), dots(group.count(), 0.0);
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      const int64_t begin = group.begin(item);
      parts[i] =
          dot<T, A>(data<T>(grads[item.layer]) + begin, data<T>(*group.weights[item.layer]) + begin, group.size(item));
    });
    for (size_t i = 0; i < group.items.size(); ++i) dots[group.items[i].layer] += parts[i];
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      const int64_t l = item.layer;
      const double s = data<A>(sigma)[chosen[l]];
      rank_one<T, A>(group.matrix(item), item, data<T>(grads[l]), vectors.u[l], vectors.v[l], mutable_data<T>(out[l]),
                     1 / s, -dots[l] / (s * s));
    });
  });
  return out;
}

std::tuple<TensorList, TensorList> spectral_normalize_bwd_bwd(TensorList grad_grads_, TensorList grads_,
                                                              TensorList weights, Tensor uv, Tensor sigma,
                                                              std::vector<int64_t> dims, std::vector<int64_t> chosen) {
  const char* op = "spectral_normalize_bwd_bwd";
  const Layers layers = layers_of(op, weights, dims);
  check_saved(op, layers, uv, sigma);
  check_chosen(op, layers, chosen);
  const TensorList grad_grads = like_weights(op, "grad_grads", layers, chosen, grad_grads_);
  const TensorList grads = like_weights(op, "grads", layers, chosen, grads_);
  const Group group = group_of(layers, chosen);
  TensorList grads_out = outputs_like(group), weights_out = outputs_like(group);
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    struct Dots {
      double q = 0, hg = 0, gw = 0;
    };
    const Vectors<A> vectors = load_uv<A>(group, uv);
    std::vector<Dots> parts(group.items.size()), dots(group.count());
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      const int64_t l = item.layer, begin = group.begin(item), n = group.size(item);
      const T *h = data<T>(grad_grads[l]), *g = data<T>(grads[l]), *w = data<T>(*group.weights[l]);
      parts[i] = {bilinear<T, A>(group.matrix(item), item, h, vectors.u[l], vectors.v[l]),
                  dot<T, A>(h + begin, g + begin, n), dot<T, A>(g + begin, w + begin, n)};
    });
    for (size_t i = 0; i < group.items.size(); ++i) {
      Dots& sum = dots[group.items[i].layer];
      sum.q += parts[i].q;
      sum.hg += parts[i].hg;
      sum.gw += parts[i].gw;
    }
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      const int64_t l = item.layer, begin = group.begin(item);
      const double s = data<A>(sigma)[chosen[l]], down = dots[l].q / (s * s);
      combine<T, A>(data<T>(grad_grads[l]) + begin, data<T>(*group.weights[l]) + begin,
                    mutable_data<T>(grads_out[l]) + begin, group.size(item), A(1 / s), A(-down));
      rank_one<T, A>(group.matrix(item), item, data<T>(grads[l]), vectors.u[l], vectors.v[l],
                     mutable_data<T>(weights_out[l]), -down, (2 * dots[l].gw * dots[l].q / s - dots[l].hg) / (s * s));
    });
  });
  return {grads_out, weights_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("spectral_norm_power_iteration_", TORCH_BOX(&spectral_norm_power_iteration_));
  m.impl("spectral_normalize", TORCH_BOX(&spectral_normalize));
  m.impl("spectral_normalize_bwd", TORCH_BOX(&spectral_normalize_bwd));
  m.impl("spectral_normalize_bwd_bwd", TORCH_BOX(&spectral_normalize_bwd_bwd));
}

}  // namespace gankernels

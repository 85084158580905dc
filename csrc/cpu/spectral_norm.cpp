// Power iteration, W / sigma and its derivatives for all layers of a network at once.
//
// A weight is a matrix: dimension `dim` gives the rows, the others, in their order, the columns. In memory a dense weight is
// (A, O, B) with O the rows: A = 1 for the usual row-major matrix ("whole rows"), else the columns are split over A slices.
// Vectors of the columns' length are kept in memory order while working, so no weight is ever permuted or copied.
//
// With whole rows an iteration reads W once: t_i = <W_i, v>, and z += t_i W_i while row i is still in cache. Then
// u = t / |t| and W^T u = z / |t|. Slices need a pass for t and one for z.
//
// Work is cut into items by shape alone; an item's sums do not depend on who computes it, nor their order of addition.
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>

#include "../common.h"
#include "pages.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kItem = 1 << 16;      // elements of a small item
constexpr int64_t kItemsPerLayer = 16;  // of a large layer: each brings a vector of the columns' length to be added up
constexpr int64_t kTile = 256;          // slices are walked in periods of B of at least this length
constexpr int64_t kRun = 64;            // slices summed in A before the sums go to double
constexpr int64_t kSerial = 2 * kChunk;  // elements below which other threads are not woken
constexpr int kRows = 4;                // rows that share the loads of v and z

// ---------------------------------------------------------------------------------------------------------------- loops

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
GK_MULTIVERSION void rank_one_tiled(const T* x, const A* u, const A* tile, int64_t period, T* out, int64_t n, A a, A c) {
  for (int64_t base = 0; base < n; base += period) {
    const int64_t m = std::min(period, n - base);
    for (int64_t j = 0; j < m; ++j) out[base + j] = T(a * A(x[base + j]) + c * u[base + j] * tile[j]);
  }
}

template <class T, class A>
GK_MULTIVERSION void combine(const T* x, const T* y, T* out, int64_t n, A a, A b) {
  for (int64_t i = 0; i < n; ++i) out[i] = T(a * A(x[i]) + b * A(y[i]));
}

// ----------------------------------------------------------------------------------------------------- layers and items

// Rows of a whole-rows matrix, else slices.
struct Item {
  int64_t layer, begin, end;
};

struct Group {
  std::vector<Tensor> weights;   // dense
  std::vector<Matrix> matrices;
  std::vector<int64_t> u_at, v_at;  // in uv
  int64_t uv_length = 0, elements = 0;
  std::vector<Item> items;
  std::vector<int64_t> first_item;  // of each layer, and the end

  int64_t layers() const { return static_cast<int64_t>(weights.size()); }
  int64_t unit(int64_t layer) const {  // elements of a row or slice
    return matrices[layer].whole_rows() ? matrices[layer].columns : matrices[layer].slice;
  }
};

Tensor dense(const Tensor& t) { return is_dense(t) ? t : as_contiguous(t); }

Group group_of(const char* op, const std::vector<Tensor>& weights, const std::vector<int64_t>& dims) {
  GK_CHECK(dims.size() == weights.size(), op, ": dims must have one entry per weight, ", weights.size(), ", got ", dims.size());
  GK_CHECK(!weights.empty(), op, ": weights must not be empty");
  Group group;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    check_cpu(op, "weights", w);
    GK_CHECK(w.dim() >= 2, op, ": weights[", i, "] must have 2 or more dimensions, got shape ", shape_text(w.sizes()));
    GK_CHECK(dims[i] >= 0 && dims[i] < w.dim(), op, ": dims[", i, "] must be in [0, ", w.dim(), "), got ", dims[i]);
    GK_CHECK(w.scalar_type() == weights[0].scalar_type(), op, ": weights must have one dtype, got ",
             torch::headeronly::toString(weights[0].scalar_type()), " and ", torch::headeronly::toString(w.scalar_type()));
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor w = dense(weights[i]);
    const Matrix m = matrix_of(w, dims[i]);
    group.first_item.push_back(static_cast<int64_t>(group.items.size()));
    const int64_t units = m.whole_rows() ? m.rows : m.slices;
    const int64_t most = std::min(units, std::clamp<int64_t>((w.numel() + kItem - 1) / kItem, 1, kItemsPerLayer));
    const int64_t share = most ? ((units + most - 1) / most + kRows - 1) / kRows * kRows : 1;
    if (w.numel())
      for (int64_t at = 0; at < units; at += share)
        group.items.push_back({static_cast<int64_t>(i), at, std::min(at + share, units)});
    group.u_at.push_back(group.uv_length);
    group.v_at.push_back(group.uv_length + m.rows);
    group.uv_length += m.rows + m.columns;
    group.elements += w.numel();
    group.weights.push_back(w);
    group.matrices.push_back(m);
  }
  group.first_item.push_back(static_cast<int64_t>(group.items.size()));
  return group;
}

// body(item) by whichever thread is free. `finish(layer)` by the thread that did the layer's last item.
template <class Body, class Finish>
void for_each_item(const Group& group, const Body& body, const Finish& finish) {
  const int64_t items = static_cast<int64_t>(group.items.size());
  std::vector<std::atomic<int64_t>> left(group.layers());
  for (int64_t layer = 0; layer < group.layers(); ++layer) {
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

template <class A>
struct Vectors {
  std::unique_ptr<A[]> memory;
  std::vector<A*> u, v;  // v in the weight's memory order

  explicit Vectors(const Group& group) : memory(new A[group.uv_length]) {
    for (int64_t layer = 0; layer < group.layers(); ++layer) {
      u.push_back(memory.get() + group.u_at[layer]);
      v.push_back(memory.get() + group.v_at[layer]);
    }
  }

  template <class T>
  void load(const Matrix& m, int64_t layer, const T* stored_u, const T* stored_v) {
    for (int64_t i = 0; i < m.rows; ++i) u[layer][i] = A(stored_u[i]);
    for (int64_t i = 0; i < m.columns; ++i) v[layer][i] = A(stored_v[m.column.empty() ? i : m.column[i]]);
  }

  template <class T>
  void store(const Matrix& m, int64_t layer, T* stored_u, T* stored_v) const {
    for (int64_t i = 0; i < m.rows; ++i) stored_u[i] = T(u[layer][i]);
    for (int64_t i = 0; i < m.columns; ++i) stored_v[m.column.empty() ? i : m.column[i]] = T(v[layer][i]);
  }
};

template <class A>
Vectors<A> load_uv(const Group& group, const Tensor& uv) {
  Vectors<A> vectors(group);
  for (int64_t layer = 0; layer < group.layers(); ++layer)
    vectors.load(group.matrices[layer], layer, data<A>(uv) + group.u_at[layer], data<A>(uv) + group.v_at[layer]);
  return vectors;
}

// One period of v for slice `a`.
template <class A>
void fill_tile(const Matrix& m, const A* v, int64_t slice, A* tile) {
  for (int64_t at = 0; at < m.period(); at += m.inner)
    for (int64_t b = 0; b < m.inner; ++b) tile[at + b] = v[slice * m.inner + b];
}

// u spread over the O * B elements of a slice.
template <class A>
std::vector<A> spread(const Matrix& m, const A* u) {
  std::vector<A> wide(m.slice);
  for (int64_t o = 0; o < m.rows; ++o) std::fill_n(wide.data() + o * m.inner, m.inner, u[o]);
  return wide;
}

// t = X v over the item's slices, in runs of slices short enough for sums in A.
template <class T, class A>
void slices_times_v(const Matrix& m, const Item& item, const T* x, const A* v, A* t) {
  std::vector<A> wide(m.slice), tile(m.period());
  std::vector<double> sums(m.rows, 0.0);
  for (int64_t first = item.begin; first < item.end; first += kRun) {
    std::fill(wide.begin(), wide.end(), A(0));
    for (int64_t a = first; a < std::min(first + kRun, item.end); ++a) {
      fill_tile(m, v, a, tile.data());
      multiply_add_tiled<T, A>(x + a * m.slice, tile.data(), m.period(), m.slice, wide.data());
    }
    for (int64_t o = 0; o < m.rows; ++o)
      sums[o] = std::accumulate(wide.begin() + o * m.inner, wide.begin() + (o + 1) * m.inner, sums[o]);
  }
  for (int64_t o = 0; o < m.rows; ++o) t[o] = A(sums[o]);
}

// z = X^T u over the item's slices; wide is u spread.
template <class T, class A>
void slices_times_u(const Matrix& m, const Item& item, const T* x, const A* wide, A* z) {
  std::vector<A> sums(m.period());
  for (int64_t a = item.begin; a < item.end; ++a) {
    std::fill(sums.begin(), sums.end(), A(0));
    reduce_tiled<T, A>(x + a * m.slice, wide, m.period(), m.slice, sums.data());
    A* out = z + a * m.inner;
    std::copy_n(sums.begin(), m.inner, out);
    for (int64_t at = m.inner; at < m.period(); at += m.inner)
      for (int64_t b = 0; b < m.inner; ++b) out[b] += sums[at + b];
  }
}

// The power of two at or below |x|: dividing by it loses nothing. 1 for 0, infinity and NaN.
inline double power_of_two(double x) {
  int exponent = 1;
  if (x != 0 && std::isfinite(x)) std::frexp(x, &exponent);
  return std::ldexp(1.0, exponent - 1);
}

// Writes the item's part of t = X v, and z = X^T t / scale of it; returns the scale, by which weights of 1e-25 or 1e25 neither
// vanish nor overflow when squared.
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
  std::vector<A> tile(m.period());
  for (int64_t slice = item.begin; slice < item.end; ++slice) {
    fill_tile(m, v, slice, tile.data());
    rank_one_tiled<T, A>(x + slice * m.slice, wide.data(), tile.data(), m.period(), out + slice * m.slice, m.slice, A(a), A(c));
  }
}

// torch.nn.functional.normalize: NaN stays NaN.
inline double clamped(double norm, double eps) { return norm < eps ? eps : norm; }

// ---------------------------------------------------------------------------------------------------------------- ops

std::tuple<Tensor, Tensor> spectral_norm_power_iteration_(std::vector<Tensor> weights, std::vector<Tensor> u,
                                                          std::vector<Tensor> v, std::vector<int64_t> dims,
                                                          int64_t iterations, double eps) {
  const char* op = "spectral_norm_power_iteration_";
  const Group group = group_of(op, weights, dims);
  GK_CHECK(iterations >= 0, op, ": iterations must be >= 0, got ", iterations);
  GK_CHECK(eps >= 0 && std::isfinite(eps), op, ": eps must be finite and >= 0, got ", eps);
  GK_CHECK(u.size() == weights.size() && v.size() == weights.size(), op, ": u and v must have one tensor per weight, ",
           weights.size(), ", got ", u.size(), " and ", v.size());
  const int64_t layers = group.layers();
  const auto check_vector = [&](const char* name, const Tensor& t, int64_t layer, int64_t length) {
    check_cpu(op, name, t);
    GK_CHECK(t.dim() == 1 && t.size(0) == length && t.is_contiguous() && t.scalar_type() == weights[0].scalar_type(), op,
             ": ", name, "[", layer, "] must be a contiguous ", torch::headeronly::toString(weights[0].scalar_type()),
             " tensor of shape (", length, ",), got ", torch::headeronly::toString(t.scalar_type()), " of shape ",
             shape_text(t.sizes()));
  };
  for (int64_t i = 0; i < layers; ++i) {
    check_vector("u", u[i], i, group.matrices[i].rows);
    check_vector("v", v[i], i, group.matrices[i].columns);
  }
  const auto dtype = accumulate_type(weights[0].scalar_type());
  Tensor uv = torch::stable::new_empty(weights[0], std::vector<int64_t>{group.uv_length}, dtype);
  Tensor sigma = torch::stable::new_empty(weights[0], std::vector<int64_t>{layers}, dtype);
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    Vectors<A> vectors(group);
    for (int64_t i = 0; i < layers; ++i) vectors.template load<T>(group.matrices[i], i, data<T>(u[i]), data<T>(v[i]));
    std::vector<double> sigmas(layers, 0.0), factors(group.items.size());

    if (iterations == 0) {
      for_each_item(group, [&](int64_t i) {
        const Item& item = group.items[i];
        factors[i] = bilinear<T, A>(group.matrices[item.layer], item, data<T>(group.weights[item.layer]),
                                    vectors.u[item.layer], vectors.v[item.layer]);
      });
      for (size_t i = 0; i < group.items.size(); ++i) sigmas[group.items[i].layer] += factors[i];
    }

    // what an item adds to its layer: z (whole rows) or t (slices)
    std::vector<int64_t> part_at;
    int64_t parts_length = 0;
    for (const Item& item : group.items) {
      const Matrix& m = group.matrices[item.layer];
      part_at.push_back(parts_length);
      parts_length += m.whole_rows() ? m.columns : m.rows;
    }
    const std::unique_ptr<A[]> parts(iterations ? new A[parts_length] : nullptr);

    const auto set_u = [&](int64_t layer) {
      const Matrix& m = group.matrices[layer];
      const double norm = clamped(std::sqrt(squared_norm(vectors.u[layer], m.rows)), eps);
      for (int64_t i = 0; i < m.rows; ++i) vectors.u[layer][i] = A(vectors.u[layer][i] / norm);
      return norm;
    };
    // from W^T u in v's place
    const auto set_v = [&](int64_t layer) {
      const Matrix& m = group.matrices[layer];
      const double square = squared_norm(vectors.v[layer], m.columns), norm = clamped(std::sqrt(square), eps);
      for (int64_t i = 0; i < m.columns; ++i) vectors.v[layer][i] = A(vectors.v[layer][i] / norm);
      sigmas[layer] = square / norm;
    };
    const auto forward_item = [&](int64_t i) {
      const Item& item = group.items[i];
      const Matrix& m = group.matrices[item.layer];
      const T* w = data<T>(group.weights[item.layer]);
      if (m.whole_rows()) {
        factors[i] = rows_there_and_back<T, A>(m, item, w, vectors.v[item.layer], vectors.u[item.layer], parts.get() + part_at[i]);
      } else {
        slices_times_v<T, A>(m, item, w, vectors.v[item.layer], parts.get() + part_at[i]);
      }
    };
    const auto forward_layer = [&](int64_t layer) {
      const Matrix& m = group.matrices[layer];
      const int64_t first = group.first_item[layer], last = group.first_item[layer + 1];
      if (first == last) std::fill_n(vectors.u[layer], m.rows, A(0));  // no columns: nobody wrote t
      if (!m.whole_rows()) {
        std::fill_n(vectors.u[layer], m.rows, A(0));
        const A one = 1;
        for (int64_t i = first; i < last; ++i) add_rows<A, A, 1>(parts.get() + part_at[i], &one, m.rows, vectors.u[layer]);
        set_u(layer);
        return;
      }
      const double norm = set_u(layer);
      std::fill_n(vectors.v[layer], m.columns, A(0));
      for (int64_t i = first; i < last; ++i) {
        const A c = A(factors[i] / norm);
        add_rows<A, A, 1>(parts.get() + part_at[i], &c, m.columns, vectors.v[layer]);
      }
      set_v(layer);
    };
    const bool any_slices =
        std::any_of(group.matrices.begin(), group.matrices.end(), [](const Matrix& m) { return !m.whole_rows(); });
    for (int64_t k = 0; k < iterations; ++k) {
      for_each_item(group, forward_item, forward_layer);
      if (!any_slices) continue;
      std::vector<std::vector<A>> wide(layers);
      for (int64_t i = 0; i < layers; ++i)
        if (!group.matrices[i].whole_rows()) wide[i] = spread(group.matrices[i], vectors.u[i]);
      for_each_item(
          group,
          [&](int64_t i) {
            const Item& item = group.items[i];
            const Matrix& m = group.matrices[item.layer];
            if (!m.whole_rows())
              slices_times_u<T, A>(m, item, data<T>(group.weights[item.layer]), wide[item.layer].data(), vectors.v[item.layer]);
          },
          [&](int64_t layer) {
            if (!group.matrices[layer].whole_rows()) set_v(layer);
          });
    }

    for (int64_t i = 0; i < layers; ++i) {
      const Matrix& m = group.matrices[i];
      mutable_data<A>(sigma)[i] = A(sigmas[i]);
      vectors.template store<A>(m, i, mutable_data<A>(uv) + group.u_at[i], mutable_data<A>(uv) + group.v_at[i]);
      if (iterations) vectors.template store<T>(m, i, mutable_data<T>(u[i]), mutable_data<T>(v[i]));
    }
  });
  return {uv, sigma};
}

void check_saved(const char* op, const Group& group, Tensor& uv, Tensor& sigma) {
  const auto dtype = accumulate_type(group.weights[0].scalar_type());
  const auto check = [&](const char* name, const Tensor& t, int64_t length) {
    check_cpu(op, name, t);
    GK_CHECK(t.dim() == 1 && t.size(0) == length && t.scalar_type() == dtype, op, ": ", name, " must be ",
             torch::headeronly::toString(dtype), " of shape (", length, ",), got ",
             torch::headeronly::toString(t.scalar_type()), " of shape ", shape_text(t.sizes()));
  };
  check("uv", uv, group.uv_length);
  check("sigma", sigma, group.layers());
  uv = as_contiguous(uv);
  sigma = as_contiguous(sigma);
}

std::vector<Tensor> spectral_normalize(std::vector<Tensor> weights, Tensor uv, Tensor sigma, std::vector<int64_t> dims) {
  const char* op = "spectral_normalize";
  const Group group = group_of(op, weights, dims);
  check_saved(op, group, uv, sigma);
  std::vector<Tensor> out;
  for (const Tensor& w : group.weights) out.push_back(empty_like_on_huge_pages(w));
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      const int64_t begin = item.begin * group.unit(item.layer), end = item.end * group.unit(item.layer);
      divide<T, A>(data<T>(group.weights[item.layer]) + begin, mutable_data<T>(out[item.layer]) + begin, end - begin,
                   A(1.0 / data<A>(sigma)[item.layer]));
    });
  });
  return out;
}

// The layers a derivative is asked for, as a group of their own that still knows where their u and v are.
Group chosen(const char* op, const Group& all, const std::vector<int64_t>& layers) {
  Group group;
  for (const int64_t layer : layers) {
    GK_CHECK(layer >= 0 && layer < all.layers(), op, ": layers must be in [0, ", all.layers(), "), got ", layer);
    group.first_item.push_back(static_cast<int64_t>(group.items.size()));
    for (int64_t i = all.first_item[layer]; i < all.first_item[layer + 1]; ++i)
      group.items.push_back({group.layers(), all.items[i].begin, all.items[i].end});
    group.weights.push_back(all.weights[layer]);
    group.matrices.push_back(all.matrices[layer]);
    group.u_at.push_back(all.u_at[layer]);
    group.v_at.push_back(all.v_at[layer]);
    group.elements += all.weights[layer].numel();
  }
  group.uv_length = all.uv_length;
  group.first_item.push_back(static_cast<int64_t>(group.items.size()));
  return group;
}

std::vector<Tensor> like_weights(const char* op, const char* name, const Group& group, const std::vector<Tensor>& tensors) {
  GK_CHECK(tensors.size() == group.weights.size(), op, ": ", name, " must have one tensor per entry of layers, ",
           group.layers(), ", got ", tensors.size());
  std::vector<Tensor> out;
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_cpu(op, name, tensors[i]);
    check_same_shape(op, name, tensors[i], "its weight", group.weights[i]);
    out.push_back(in_layout_of(group.weights[i], tensors[i]));
  }
  return out;
}

std::vector<Tensor> spectral_normalize_bwd(std::vector<Tensor> grads_, std::vector<Tensor> weights, Tensor uv, Tensor sigma,
                                           std::vector<int64_t> dims, std::vector<int64_t> layers) {
  const char* op = "spectral_normalize_bwd";
  const Group all = group_of(op, weights, dims);
  check_saved(op, all, uv, sigma);
  const Group group = chosen(op, all, layers);
  const std::vector<Tensor> grads = like_weights(op, "grads", group, grads_);
  std::vector<Tensor> out;
  for (const Tensor& w : group.weights) out.push_back(empty_like_on_huge_pages(w));
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const Vectors<A> vectors = load_uv<A>(group, uv);
    std::vector<double> parts(group.items.size()), dots(group.layers(), 0.0);
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      const int64_t begin = item.begin * group.unit(item.layer), end = item.end * group.unit(item.layer);
      parts[i] = dot<T, A>(data<T>(grads[item.layer]) + begin, data<T>(group.weights[item.layer]) + begin, end - begin);
    });
    for (size_t i = 0; i < group.items.size(); ++i) dots[group.items[i].layer] += parts[i];
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      const int64_t l = item.layer;
      const double s = data<A>(sigma)[layers[l]];
      rank_one<T, A>(group.matrices[l], item, data<T>(grads[l]), vectors.u[l], vectors.v[l], mutable_data<T>(out[l]), 1 / s,
                     -dots[l] / (s * s));
    });
  });
  return out;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> spectral_normalize_bwd_bwd(
    std::vector<Tensor> grad_grads_, std::vector<Tensor> grads_, std::vector<Tensor> weights, Tensor uv, Tensor sigma,
    std::vector<int64_t> dims, std::vector<int64_t> layers) {
  const char* op = "spectral_normalize_bwd_bwd";
  const Group all = group_of(op, weights, dims);
  check_saved(op, all, uv, sigma);
  const Group group = chosen(op, all, layers);
  const std::vector<Tensor> grad_grads = like_weights(op, "grad_grads", group, grad_grads_);
  const std::vector<Tensor> grads = like_weights(op, "grads", group, grads_);
  std::vector<Tensor> grads_out, weights_out;
  for (const Tensor& w : group.weights) {
    grads_out.push_back(empty_like_on_huge_pages(w));
    weights_out.push_back(empty_like_on_huge_pages(w));
  }
  dispatch_floating(op, weights[0].scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    struct Dots {
      double q = 0, hg = 0, gw = 0;
    };
    const Vectors<A> vectors = load_uv<A>(group, uv);
    std::vector<Dots> parts(group.items.size()), dots(group.layers());
    for_each_item(group, [&](int64_t i) {
      const Item& item = group.items[i];
      const int64_t l = item.layer, begin = item.begin * group.unit(l), n = item.end * group.unit(l) - begin;
      const T *h = data<T>(grad_grads[l]), *g = data<T>(grads[l]), *w = data<T>(group.weights[l]);
      parts[i] = {bilinear<T, A>(group.matrices[l], item, h, vectors.u[l], vectors.v[l]),
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
      const int64_t l = item.layer, begin = item.begin * group.unit(l), n = item.end * group.unit(l) - begin;
      const double s = data<A>(sigma)[layers[l]], down = dots[l].q / (s * s);
      combine<T, A>(data<T>(grad_grads[l]) + begin, data<T>(group.weights[l]) + begin, mutable_data<T>(grads_out[l]) + begin,
                    n, A(1 / s), A(-down));
      rank_one<T, A>(group.matrices[l], item, data<T>(grads[l]), vectors.u[l], vectors.v[l], mutable_data<T>(weights_out[l]),
                     -down, (2 * dots[l].gw * dots[l].q / s - dots[l].hg) / (s * s));
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

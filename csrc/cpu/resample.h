// Resampling row by row, as sums of shifted rows: an output row is a sum of input rows, and its columns of one phase are a sum of
// that row, shifted by one pixel after the other. Inserted zeros are never multiplied, and all that lies between input and
// output is a few rows in the cache. A pixel is `channels` numbers: 1 in a plane, a block of channels in channels_last.
// A row is short, so everything from here down to a sum is inlined into one loop over the rows of a band, which has a clone per
// instruction set.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "../resample.h"
#include "vec.h"

namespace gankernels {
namespace {

// body.operator()<V, kCount>(i) for blocks of kCount registers V, from the number i on, that cover n numbers. Blocks may overlap;
// where a register is too wide, V is a number.
template <class A, int kBytes, class Body>
GK_INLINE void in_blocks(int64_t n, const Body& body) {
  using V = register_of<A, kBytes>;
  constexpr int64_t one = kBytes / sizeof(A), two = 2 * one;
  if (n >= two)
    for (int64_t i = 0; i < n; i += two) body.template operator()<V, 2>(std::min(i, n - two));
  else if (n >= one)
    for (int64_t i = 0; i < n; i += one) body.template operator()<V, 1>(std::min(i, n - one));
  else
    for (int64_t i = 0; i < n; ++i) body.template operator()<A, 1>(i);
}

// sum[m] += weight * the m-th register from `row` on
template <class A, class V, int kCount>
GK_INLINE void add(V (&sum)[kCount], A weight, const A* row) {
  for (int m = 0; m < kCount; ++m) {
    V value;
    std::memcpy(&value, row + m * (sizeof(V) / sizeof(A)), sizeof(V));
    sum[m] += weight * value;
  }
}

template <class A, class T, class V>
GK_INLINE void store(T* out, const V& value) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(out, &value, sizeof(V));
  } else if constexpr (std::is_same_v<T, bfloat16_t> && !std::is_same_v<V, A>) {
    using Bits = register_of<uint32_t, sizeof(V)>;
    Bits bits;  // rounded to even, and a NaN stays one
    std::memcpy(&bits, &value, sizeof(V));
    bits = value == value ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
    const auto halves = __builtin_convertvector(bits >> 16, register_of<uint16_t, sizeof(V) / 2>);
    std::memcpy(out, &halves, sizeof(halves));
  } else {
    A numbers[sizeof(V) / sizeof(A)];
    std::memcpy(numbers, &value, sizeof(V));
    for (size_t l = 0; l < sizeof(V) / sizeof(A); ++l) out[l] = T(numbers[l]);
  }
}

template <class A, class T, class V, int kCount>
GK_INLINE void store(T* out, const V (&values)[kCount]) {
  for (int m = 0; m < kCount; ++m) store<A>(out + m * (sizeof(V) / sizeof(A)), values[m]);
}

// out = the numbers of a and b in turn.
template <class A, class T, class V>
GK_INLINE void store_in_turn(T* out, const V& a, const V& b) {
  if constexpr (std::is_same_v<V, A>) {
    out[0] = T(a), out[1] = T(b);
  } else {
    constexpr int lanes = sizeof(V) / sizeof(A);
    [&]<int... l>(std::integer_sequence<int, l...>) GK_INLINE_LAMBDA {
      store<A>(out, __builtin_shufflevector(a, b, (l % 2 * lanes + l / 2)...));
      store<A>(out + lanes, __builtin_shufflevector(a, b, (l % 2 * lanes + lanes / 2 + l / 2)...));
    }(std::make_integer_sequence<int, lanes>());
  }
}

// even, odd = the numbers of a block in turn.
template <class A, class V, int kCount>
GK_INLINE void store_apart(A* even, A* odd, const V (&values)[kCount]) {
  constexpr int lanes = sizeof(V) / sizeof(A);
  if constexpr (kCount == 2 && lanes > 1) {
    [&]<int... l>(std::integer_sequence<int, l...>) GK_INLINE_LAMBDA {
      store<A>(even, __builtin_shufflevector(values[0], values[1], (2 * l)...));
      store<A>(odd, __builtin_shufflevector(values[0], values[1], (2 * l + 1)...));
    }(std::make_integer_sequence<int, lanes>());
  } else {
    A numbers[kCount * lanes];
    store<A>(numbers, values);
    for (int l = 0; l < kCount * lanes; ++l) (l % 2 ? odd : even)[l / 2] = numbers[l];
  }
}

// Consecutive rows, `stride` numbers apart.
template <class A>
struct RowsAt {
  const A* first;
  int64_t stride;
  RowsAt at(int64_t i) const { return {first + i * stride, stride}; }
};

// Rows of which the last few are asked for again and again, in consecutive memory.
template <class A>
class Window {
 public:
  Window(int64_t row, int64_t most) : row_(row), capacity_(2 * most), memory_(capacity_ * row) {}

  void forget() { begin_ = end_ = 0; }

  // Rows from `first` on, at most as many as announced; fill(i, count, to) makes rows from i on.
  template <class Fill>
  GK_INLINE RowsAt<A> operator()(int64_t first, int64_t count, const Fill& fill) {
    if (first < begin_ || first > end_) begin_ = end_ = first;
    if (first + count - begin_ > capacity_) {
      std::copy(at(first), at(end_), memory_.data());
      begin_ = first;
    }
    if (const int64_t missing = first + count - end_; missing > 0) {
      fill(end_, missing, at(end_));
      end_ += missing;
    }
    return {at(first), row_};
  }

 private:
  A* at(int64_t i) { return memory_.data() + (i - begin_) * row_; }

  int64_t row_, capacity_, begin_ = 0, end_ = 0;
  std::vector<A> memory_;
};

// Where the channels of a row lie: in memory pixels are `stride` apart, here `block`, of which `channels` are in use.
struct Pixels {
  int64_t count, channels, block, stride;
  bool dense() const { return channels == stride && channels == block; }
};

// A row of x in the type of the sums, with the bias of each channel.
template <class T, class A>
GK_INLINE void load_row(const T* x, A* __restrict row, const A* bias, Pixels pixels) {
  if (pixels.dense() && (!bias || pixels.channels == 1)) {
    const A b = bias ? bias[0] : A(0);
    for (int64_t i = 0; i < pixels.count * pixels.channels; ++i) row[i] = A(x[i]) + b;
    return;
  }
  for (int64_t p = 0; p < pixels.count; ++p, x += pixels.stride, row += pixels.block) {
    if (bias)
      for (int64_t c = 0; c < pixels.channels; ++c) row[c] = A(x[c]) + bias[c];
    else
      for (int64_t c = 0; c < pixels.channels; ++c) row[c] = A(x[c]);
  }
}

// Taps in the order in which they meet the input: separable, w[y][x] = down[y] across[x], or any matrix.
template <class A>
struct Filter {
  int64_t rows, columns;
  bool separable;
  std::vector<A> down, across, matrix;

  Filter(const Tensor& f, bool flip, double gain) : rows(taps_down(f)), columns(taps_across(f)), separable(f.dim() == 1) {
    std::vector<A> taps(data<A>(f), data<A>(f) + f.numel());
    if (!flip) std::reverse(taps.begin(), taps.end());
    if (separable) {
      across = down = taps;
    } else if (take_apart(taps); !separable) {
      matrix = taps;
    }
    for (A& w : separable ? down : matrix) w *= A(gain);
  }

 private:
  // A matrix of rank 1 up to rounding, which the usual small filters are, is separable too.
  void take_apart(const std::vector<A>& taps) {
    const int64_t pivot = std::max_element(taps.begin(), taps.end(), [](A a, A b) { return std::abs(a) < std::abs(b); }) - taps.begin();
    const A largest = taps[pivot];
    for (int64_t y = 0; y < rows; ++y) down.push_back(taps[y * columns + pivot % columns]);
    for (int64_t x = 0; x < columns; ++x) across.push_back(taps[pivot / columns * columns + x] / largest);
    separable = true;
    for (int64_t i = 0; i < rows * columns; ++i) {
      const A error = std::abs(taps[i] - down[i / columns] * across[i % columns]);
      separable &= error <= 4 * std::numeric_limits<A>::epsilon() * std::abs(largest);  // never for NaN
    }
  }
};

// How rows of one size become rows of another; the same for all images, and read-only.
template <class A>
struct Plan {
  // An output row sums `count` input rows from `first` on with taps tap, tap + up, ... `first` never falls.
  struct Row {
    int64_t first, count, tap;
  };
  // Columns o = residue, residue + period, ... of the output, all of one phase: a sum of placed rows from these places on.
  struct Residue {
    int64_t pixels, taps;
    std::vector<int64_t> places;
    std::vector<A> weights;  // `taps` of them for each row of the filter; one row if it is separable
  };

  Axis x, y;
  Filter<A> filter;
  int64_t channels;      // of a pixel
  int64_t period, step;  // period columns of output further, the input is `step` columns further
  int64_t begin, end;    // input columns that count
  int64_t base, length;  // a placed row starts with input column `base`
  int64_t parts;         // column base + i of a placed row is pixel i / parts of part i % parts, of `length` pixels
  std::vector<Row> rows;
  std::vector<Residue> residues;

  Plan(Axis x, Axis y, Filter<A> filter_, int64_t channels) : x(x), y(y), filter(std::move(filter_)), channels(channels) {
    const int64_t divisor = std::gcd(x.up, x.down);
    period = x.up / divisor;
    step = x.down / divisor;
    parts = channels == 1 ? step : 1;
    base = x.first_input(0);
    const int64_t last = floor_div((x.out - 1) * x.down - x.pad + x.taps - 1, x.up);
    begin = std::clamp<int64_t>(base, 0, x.in);
    end = std::clamp<int64_t>(last + 1, begin, x.in);
    length = std::max<int64_t>(0, ceil_div(last + 1 - base, parts)) + 1;
    for (int64_t o = 0; o < y.out; ++o) {
      const int64_t all = y.first_input(o), first = std::clamp<int64_t>(all, 0, y.in), tap = y.first_tap(o);
      const int64_t behind = all + ceil_div(std::max<int64_t>(0, y.taps - tap), y.up);
      rows.push_back({first, std::clamp<int64_t>(behind, first, y.in) - first, tap + (first - all) * y.up});
    }
    for (int64_t r = 0; r < std::min(period, x.out); ++r) {
      Residue residue{ceil_div(x.out - r, period), 0, {}, {}};
      std::vector<int64_t> taps;
      int64_t at = x.first_input(r) - base;
      for (int64_t k = x.first_tap(r); k < x.taps; k += x.up, ++at) {
        residue.places.push_back((at % parts * length + at / parts) * channels);
        taps.push_back(k);
      }
      residue.taps = int64_t(taps.size());
      for (int64_t k = 0; k < (filter.separable ? 1 : filter.rows); ++k)
        for (const int64_t tap : taps)
          residue.weights.push_back(filter.separable ? filter.across[tap] : filter.matrix[k * filter.columns + tap]);
      residues.push_back(std::move(residue));
    }
  }

  // Input rows for the output rows o to o + n - 1, or at most for n of them.
  std::pair<int64_t, int64_t> input_rows(int64_t o, int64_t n) const {
    const Row &begin = rows[o], &end = rows[o + n - 1];
    return {begin.first, std::max(end.first + end.count, begin.first + begin.count) - begin.first};
  }
  int64_t most_rows(int64_t n) const { return y.most_taps() + ceil_div((n - 1) * y.down, y.up) + 1; }

  int64_t placed() const { return parts * length * channels; }
  int64_t used() const { return (end - begin) * channels; }
};

// A thread's rows on the way from input to output, a few at a time: what was just stored can be loaded again, shifted, only
// some time later.
template <class A>
class Stage {
 public:
  explicit Stage(const Plan<A>& plan)
      : plan_(plan), group_(std::clamp<int64_t>(2048 / (plan.x.out * plan.channels), 1, 8)),
        placed_(plan.filter.separable ? group_ * plan.placed() : 0), plain_(group_ * plan.used()),
        placed_rows_(plan.placed(), plan.filter.separable ? 0 : most_rows()) {}

  int64_t most_rows() const { return plan_.most_rows(group_); }  // that a source is asked for at once

  void forget() { placed_rows_.forget(); }  // before another image

  // Rows first to last - 1 of the output, in order; source(i, count) gives rows i to i + count - 1 of the input.
  template <int kBytes, class T, class Source>
  GK_INLINE void rows(int64_t first, int64_t last, Source& source, T* out, int64_t stride, Pixels pixels) {
    for (int64_t o = first; o < last; o += group_) {
      const int64_t n = std::min(group_, last - o);
      const auto [begin, count] = plan_.input_rows(o, n);
      T* to = out + (o - first) * stride;
      if (plan_.filter.separable) {
        const RowsAt<A> from = source(begin, count);
        for (int64_t r = 0; r < n; ++r)
          sum_rows<kBytes>(from.at(plan_.rows[o + r].first - begin), plan_.rows[o + r], placed_.data() + r * plan_.placed(),
                           plain_.data() + r * plan_.used());
        if (plan_.parts > 2)
          for (int64_t r = 0; r < n; ++r) place(plain_.data() + r * plan_.used(), placed_.data() + r * plan_.placed());
        for (int64_t r = 0; r < n; ++r)
          across<kBytes>({placed_.data() + r * plan_.placed(), 0}, 1, 0, to + r * stride, pixels);
      } else {
        const RowsAt<A> from = placed_rows_(begin, count, [&](int64_t i, int64_t count, A* to) GK_INLINE_LAMBDA {
          const RowsAt<A> plain = source(i, count);
          for (int64_t r = 0; r < count; ++r) place(plain.at(r).first + plan_.begin * plan_.channels, to + r * plan_.placed());
        });
        for (int64_t r = 0; r < n; ++r)
          across<kBytes>(from.at(plan_.rows[o + r].first - begin), plan_.rows[o + r].count, plan_.rows[o + r].tap,
                         to + r * stride, pixels);
      }
    }
  }

 private:
  // Columns begin to end of an output row before its columns are resampled: where they are placed, or as they come.
  template <int kBytes>
  GK_INLINE void sum_rows(RowsAt<A> rows, const typename Plan<A>::Row& row, A* __restrict placed, A* __restrict plain) {
    const A *from = rows.first + plan_.begin * plan_.channels, *weights = plan_.filter.down.data() + row.tap;
    const int64_t up = plan_.y.up, parts = plan_.parts, first = (plan_.begin - plan_.base) * plan_.channels;
    const int64_t count = row.count;
    in_blocks<A, kBytes>(plan_.used(), [&]<class V, int kCount>(int64_t i) GK_INLINE_LAMBDA {
      V sum[kCount] = {};
      for (int64_t k = 0; k < count; ++k) add(sum, weights[k * up], from + k * rows.stride + i);
      if (parts == 1)
        store<A>(placed + first + i, sum);
      else if (parts == 2)
        store_apart<A>(place_of(placed, first + i, 2), place_of(placed, first + i + 1, 2), sum);
      else
        store<A>(plain + i, sum);
    });
  }

  GK_INLINE A* place_of(A* placed, int64_t i, int64_t parts) const { return placed + i % parts * plan_.length + i / parts; }

  // Columns begin to end of a row, apart by their place in a step.
  GK_INLINE void place(const A* row, A* __restrict placed) {
    const int64_t pixels = plan_.end - plan_.begin, first = plan_.begin - plan_.base, parts = plan_.parts;
    if (parts == 1) {
      std::copy_n(row, plan_.used(), placed + first * plan_.channels);
      return;
    }
    for (int64_t part = 0; part < parts; ++part) {
      A* to = place_of(placed, first + part, parts);
      for (int64_t i = part; i < pixels; i += parts) *to++ = row[i];
    }
  }

  // out = the columns of a sum of `count` placed rows, whose taps along the columns are tap, tap + up, ...
  template <int kBytes, class T>
  GK_INLINE void across(RowsAt<A> placed, int64_t count, int64_t tap, T* __restrict out, Pixels pixels) {
    const int64_t period = plan_.period, channels = plan_.channels, up = plan_.y.up;
    const auto sum_from = [&]<class V, int kCount>(V (&sum)[kCount], const auto& residue, int64_t at) GK_INLINE_LAMBDA {
      for (V& s : sum) s = V{};
      for (int64_t k = 0; k < count; ++k) {
        const A *row = placed.first + k * placed.stride + at, *weights = residue.weights.data() + (tap + k * up) * residue.taps;
        const int64_t *places = residue.places.data(), taps = residue.taps;
        for (int64_t j = 0; j < taps; ++j) add(sum, weights[j], row + places[j]);
      }
    };
    const auto& residues = plan_.residues;
    if (period == 1 && (channels == 1 || (plan_.step == 1 && pixels.dense()))) {
      in_blocks<A, kBytes>(pixels.count * channels, [&]<class V, int kCount>(int64_t i) GK_INLINE_LAMBDA {
        V sum[kCount];
        sum_from(sum, residues[0], i);
        store<A>(out + i, sum);
      });
    } else if (period == 2 && channels == 1) {
      const int64_t pairs = pixels.count / 2;
      in_blocks<A, kBytes>(pairs, [&]<class V, int kCount>(int64_t i) GK_INLINE_LAMBDA {
        V even[kCount], odd[kCount];
        sum_from(even, residues[0], i);
        sum_from(odd, residues[1], i);
        constexpr int64_t two = 2 * sizeof(V) / sizeof(A);
        for (int m = 0; m < kCount; ++m) store_in_turn<A>(out + 2 * i + m * two, even[m], odd[m]);
      });
      if (pixels.count % 2) {
        A last[1];
        sum_from(last, residues[0], pairs);
        out[2 * pairs] = T(last[0]);
      }
    } else if (channels == 1) {
      for (size_t r = 0; r < residues.size(); ++r)
        for (int64_t i = 0; i < residues[r].pixels; ++i) {
          A sum[1];
          sum_from(sum, residues[r], i);
          out[i * period + r] = T(sum[0]);
        }
    } else {
      for (size_t r = 0; r < residues.size(); ++r)
        for (int64_t i = 0; i < residues[r].pixels; ++i)
          in_blocks<A, kBytes>(pixels.channels, [&]<class V, int kCount>(int64_t c) GK_INLINE_LAMBDA {
            V sum[kCount];
            sum_from(sum, residues[r], i * plan_.step * channels + c);
            store<A>(out + (i * period + r) * pixels.stride + c, sum);
          });
    }
  }

  const Plan<A>& plan_;
  int64_t group_;
  std::vector<A> placed_, plain_;  // of zeros, and those around the input stay
  Window<A> placed_rows_;
};

// The rows of a batch of images, taken apart into blocks of channels: a plane's one, or in channels_last so many that a row of
// them stays in the cache.
struct Rows {
  int64_t samples, channels, height, width, stride, block, blocks;

  Rows(const Tensor& t, bool channels_last, int64_t block)
      : samples(t.size(0)), channels(t.size(1)), height(t.size(2)), width(t.size(3)), stride(channels_last ? channels : 1),
        block(block), blocks(ceil_div(channels, block)) {}

  int64_t at(int64_t sample, int64_t channel, int64_t row) const {
    return stride == 1 ? ((sample * channels + channel) * height + row) * width
                       : (sample * height + row) * width * channels + channel;
  }
  Pixels pixels(int64_t channel) const { return {width, std::min(block, channels - channel), block, stride}; }
};

constexpr int64_t kRow = 8192;  // about as many numbers in a row of a block

inline int64_t channels_of_block(int64_t channels, int64_t widest_row, bool channels_last) {
  if (!channels_last || channels == 0) return 1;
  const int64_t most = std::max<int64_t>(16, kRow / widest_row);
  return ceil_div(channels, ceil_div(channels, most));
}

// Rows of an input in the type of the sums, plus a bias; at most `most` are asked for at once.
template <class T, class A>
class Loader {
 public:
  Loader(const T* x, const Rows& rows, int64_t most, const A* bias)
      : x_(x), rows_(rows), bias_(bias), direct_(std::is_same_v<T, A> && !bias && rows.block == rows.stride),
        loaded_(rows.width * rows.block, direct_ ? 0 : most) {}

  void begin(int64_t sample, int64_t channel) {
    sample_ = sample;
    channel_ = channel;
    loaded_.forget();
  }

  GK_INLINE RowsAt<A> operator()(int64_t first, int64_t count) {
    if constexpr (std::is_same_v<T, A>)
      if (direct_) return {x_ + rows_.at(sample_, channel_, first), rows_.width * rows_.stride};
    return loaded_(first, count, [&](int64_t i, int64_t count, A* to) GK_INLINE_LAMBDA {
      for (int64_t r = 0; r < count; ++r, to += rows_.width * rows_.block)
        load_row(x_ + rows_.at(sample_, channel_, i + r), to, bias_ ? bias_ + channel_ : nullptr, rows_.pixels(channel_));
    });
  }

 private:
  const T* x_;
  Rows rows_;
  const A* bias_;
  bool direct_;
  int64_t sample_ = 0, channel_ = 0;
  Window<A> loaded_;
};

// body(make(), sample, channel, first row, last row) for all rows of the output, cut into bands of about `band` numbers; what
// make() returns is a thread's own.
template <class Make, class Body>
void for_each_band(const Rows& rows, int64_t band, const Make& make, const Body& body) {
  const int64_t row = rows.width * rows.block;
  const int64_t height = std::clamp<int64_t>(band / row, std::min<int64_t>(16, rows.height), rows.height);
  const int64_t bands = ceil_div(rows.height, height), items = rows.samples * rows.blocks * bands;
  const int64_t grain = std::max<int64_t>(1, 2 * kChunk / (height * row));
  if (items == 0) return;
  torch::stable::parallel_for(0, items, grain, [&](int64_t first, int64_t last) {
    auto own = make();
    for (int64_t item = first; item < last; ++item) {
      const int64_t begin = item % bands * height, block = item / bands;
      body(own, block / rows.blocks, block % rows.blocks * rows.block, begin, std::min(begin + height, rows.height));
    }
  });
}

}  // namespace
}  // namespace gankernels

// Resampling row by row: an output row is a sum of input rows, and its columns of one phase are a sum of that row, shifted by one
// pixel after the other (`fir.h`). Inserted zeros are never multiplied, and all that lies between input and output is a few rows
// in the cache. A pixel is `channels` numbers: 1 in a plane, a block of channels in channels_last.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "../resample.h"
#include "fir.h"
#include "lines.h"
#include "vec.h"

namespace gankernels {
namespace {

// Consecutive rows, `stride` numbers apart, in a cache or in memory.
template <class A>
struct RowsAt {
  const A* first;
  int64_t stride;
  bool in_memory = false;
  const A* at(int64_t i) const { return first + i * stride; }
};

// Rows of which the last few are asked for again and again, in consecutive memory.
template <class A>
class Window {
 public:
  Window(int64_t row, int64_t most) : row_(Lines<A>::whole(row)), capacity_(2 * most), memory_(capacity_ * row_) {}

  void forget() { begin_ = end_ = 0; }

  int64_t stride() const { return row_; }

  // Rows from `first` on, at most as many as announced; fill(i, count, to) makes rows from i on, `stride` apart.
  template <class Fill>
  RowsAt<A> operator()(int64_t first, int64_t count, const Fill& fill) {
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
  Lines<A> memory_;
};

// Where the channels of a row lie: in memory pixels are `stride` apart, here `block`, of which `channels` are in use.
struct Pixels {
  int64_t count, channels, block, stride;
  bool dense() const { return channels == stride && channels == block; }
};

// A row of x in the type of the sums, with the bias of each channel.
template <class T, class A>
GK_MULTIVERSION void load_row(const T* x, A* __restrict row, const A* bias, Pixels pixels) {
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

// Rows of the output in the type of the sums, to where they belong.
template <class A, class T>
GK_MULTIVERSION void store_rows(const A* rows, int64_t step, int64_t count, T* __restrict out, int64_t out_step, Pixels pixels) {
  const bool dense = pixels.dense();
  const int64_t n = dense ? pixels.count * pixels.channels : pixels.channels, parts = dense ? 1 : pixels.count;
  for (int64_t r = 0; r < count; ++r, rows += step, out += out_step)
    for (int64_t p = 0; p < parts; ++p)
      for (int64_t i = 0; i < n; ++i) out[p * pixels.stride + i] = T(rows[p * pixels.block + i]);
}

// How rows of one size become rows of another; the same for all images, and read-only.
template <class A>
struct Plan {
  // An output row sums `count` input rows from `first` on, with rows of taps from `taps` on. `first` never falls.
  struct Row {
    int64_t first, count, taps;
  };
  // Columns o = residue, residue + period, ... of the output, all of one phase: a sum of placed rows from these places on.
  struct Residue {
    int64_t pixels, taps;
    std::vector<int64_t> places;
    std::vector<A> weights;  // `taps` of them; if the filter is not separable, for each of its rows
  };

  Axis x, y;
  Filter<A> filter;
  int64_t channels;        // of a pixel
  int64_t period, step;    // period columns of output further, the input is `step` columns further
  int64_t begin, end;      // input columns that count
  int64_t parts;           // a placed row's column base + i is pixel i / parts of part i % parts, of `length` pixels
  int64_t base, length;    // so chosen that column `begin` starts a cache line
  std::vector<A> down;     // the taps of a separable filter along a column, those of one phase after those of another
  std::vector<Row> rows;
  std::vector<Residue> residues;

  Plan(Axis x, Axis y, Filter<A> filter_, int64_t channels) : x(x), y(y), filter(std::move(filter_)), channels(channels) {
    const int64_t divisor = std::gcd(x.up, x.down);
    period = x.up / divisor;
    step = x.down / divisor;
    parts = channels == 1 ? step : 1;
    const int64_t first = x.first_input(0), last = floor_div((x.out - 1) * x.down - x.pad + x.taps - 1, x.up);
    begin = std::clamp<int64_t>(first, 0, x.in);
    end = std::clamp<int64_t>(last + 1, begin, x.in);
    const int64_t line = parts * Lines<A>::kLine;
    base = begin - ceil_div(std::max<int64_t>(0, begin - first), line) * line;
    length = Lines<A>::whole(ceil_div(std::max(last + 1, end) - base, parts) + 1);
    std::vector<int64_t> order, place(y.taps);  // of the filter's rows: those of one phase after those of another
    for (int64_t phase = 0; phase < y.up; ++phase)
      for (int64_t k = phase; k < y.taps; k += y.up) place[k] = int64_t(order.size()), order.push_back(k);
    if (filter.separable)
      for (const int64_t k : order) down.push_back(filter.down[k]);
    for (int64_t o = 0; o < y.out; ++o) {
      const int64_t all = y.first_input(o), first = std::clamp<int64_t>(all, 0, y.in), tap = y.first_tap(o);
      const int64_t behind = all + ceil_div(std::max<int64_t>(0, y.taps - tap), y.up);
      const int64_t count = std::clamp<int64_t>(behind, first, y.in) - first;
      rows.push_back({first, count, count ? place[tap + (first - all) * y.up] : 0});
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
      for (const int64_t k : filter.separable ? std::vector<int64_t>{0} : order)
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

// A thread's rows on the way from input to output, a group at a time: what was just stored can be loaded again, shifted, only
// some time later.
template <class A>
class Stage {
 public:
  // A group is about as many numbers of the wider side.
  Stage(const Plan<A>& plan, int64_t group)
      : plan_(plan), group_(std::clamp<int64_t>(group / (std::max(plan.x.in, plan.x.out) * plan.channels), 1, 16)),
        wide_(Lines<A>::whole(plan.x.out * plan.channels)), placed_(plan.filter.separable ? group_ * plan.placed() : 0),
        plain_(plan.parts > 2 ? plan.used() : 0), phase_(plan.period > 1 && plan.channels == 1 ? plan.x.out : 0),
        finished_(group_ * wide_), placed_rows_(plan.placed(), plan.filter.separable ? 0 : most_rows()), down_(plan.y.most_taps()) {
    for (const auto& residue : plan.residues) {
      places_.emplace_back();
      for (int64_t k = 0; k < (plan.filter.separable ? 1 : plan.y.most_taps()); ++k)
        for (const int64_t place : residue.places) places_.back().push_back(k * placed_rows_.stride() + place);
    }
  }

  int64_t most_rows() const { return plan_.most_rows(group_); }  // that a source is asked for at once

  void forget() { placed_rows_.forget(); }  // before another image

  // Rows first to last - 1 of the output, in order, `stride` apart; source(i, count) gives rows i to i + count - 1 of the input.
  template <class T, class Source>
  void rows(int64_t first, int64_t last, Source& source, T* out, int64_t stride, Pixels pixels) {
    for (int64_t o = first; o < last; o += group_, out += group_ * stride) {
      const int64_t n = std::min(group_, last - o);
      if constexpr (std::is_same_v<T, A>) {
        group(o, n, source, out, stride, pixels, pixels.stride);
      } else {
        group(o, n, source, finished_.data(), wide_, pixels, pixels.block);
        store_rows(finished_.data(), wide_, n, out, stride, pixels);
      }
    }
  }

 private:
  using Row = typename Plan<A>::Row;

  // n rows of the output from o on, with pixels `pixel` apart.
  template <class Source>
  void group(int64_t o, int64_t n, Source& source, A* out, int64_t stride, Pixels pixels, int64_t pixel) {
    const auto [begin, count] = plan_.input_rows(o, n);
    if (plan_.filter.separable) {
      sum_rows(source(begin, count), begin, o, n);
      across(placed_.data(), 0, 1, out, {n, plan_.placed(), stride}, pixels, pixel);
      return;
    }
    const RowsAt<A> from = placed_rows_(begin, count, [&](int64_t i, int64_t count, A* to) {
      const RowsAt<A> plain = source(i, count);
      for (int64_t r = 0; r < count; ++r) place(plain.at(r) + plan_.begin * plan_.channels, to + r * placed_rows_.stride());
    });
    for (int64_t r = 0; r < n; ++r) {
      const Row& row = plan_.rows[o + r];
      across(from.at(row.first - begin), row.taps, row.count, out + r * stride, {1, 0, 0}, pixels, pixel);
    }
  }

  // Columns begin to end of n output rows from o on, before their columns are resampled, where they are placed; `from` are the
  // input's rows from `begin` on. Rows of one phase are summed together.
  void sum_rows(RowsAt<A> from, int64_t begin, int64_t o, int64_t n) {
    for (size_t k = 0; k < down_.size(); ++k) down_[k] = int64_t(k) * from.stride;
    const int64_t period = plan_.y.up / std::gcd(plan_.y.up, plan_.y.down), step = period * plan_.y.down / plan_.y.up;
    for (int64_t phase = 0; phase < std::min(period, n); ++phase)
      for (int64_t r = phase, next; r < n; r = next) {
        const Row& row = plan_.rows[o + r];
        int64_t alike = 0;
        for (next = r; next < n && plan_.rows[o + next].taps == row.taps && plan_.rows[o + next].count == row.count; next += period)
          ++alike;
        const A* rows = from.at(row.first - begin) + plan_.begin * plan_.channels;
        const Repeat repeat{alike, step * from.stride, period * plan_.placed(), from.in_memory ? step : 0};
        sum_alike(rows, row, placed_.data() + r * plan_.placed(), repeat);
      }
  }

  void sum_alike(const A* from, const Row& row, A* placed, Repeat repeat) {
    const Taps<A> taps{plan_.down.data() + row.taps, down_.data(), row.count};
    A* to = placed + (plan_.begin - plan_.base) / plan_.parts * plan_.channels;
    if (plan_.parts == 1) {
      sum_plain<A>(from, taps, plan_.used(), to, repeat);
    } else if (plan_.parts == 2) {
      sum_apart<A>(from, taps, plan_.used(), to, to + plan_.length, repeat);
    } else {
      for (int64_t r = 0; r < repeat.rows; ++r) {
        sum_plain<A>(from + r * repeat.step, taps, plan_.used(), plain_.data(), {1, 0, 0});
        place(plain_.data(), placed + r * repeat.out_step);
      }
    }
  }

  // Columns begin to end of a row, apart by their place in a step.
  void place(const A* row, A* __restrict placed) {
    A* to = placed + (plan_.begin - plan_.base) / plan_.parts * plan_.channels;
    if (plan_.parts == 1) {
      std::copy_n(row, plan_.used(), to);
      return;
    }
    for (int64_t part = 0; part < plan_.parts; ++part)
      for (int64_t i = part; i < plan_.used(); i += plan_.parts) to[part * plan_.length + i / plan_.parts] = row[i];
  }

  // out = the columns of sums of `count` placed rows each, with the rows of taps from `first` on.
  void across(const A* placed, int64_t first, int64_t count, A* out, Repeat repeat, Pixels pixels, int64_t pixel) {
    const int64_t period = plan_.period, channels = plan_.channels;
    const auto taps_of = [&](size_t r) {
      const auto& residue = plan_.residues[r];
      return Taps<A>{residue.weights.data() + first * residue.taps, places_[r].data(), count * residue.taps};
    };
    if (channels == 1 && period == 2 && pixels.count > 1) {
      const Taps<A> even = taps_of(0), odd = taps_of(1);
      const int64_t pairs = pixels.count / 2;
      sum_in_turn<A>(placed, even, odd, pairs, out, repeat);
      if (pixels.count % 2) sum_plain<A>(placed + pairs, even, 1, out + 2 * pairs, repeat);
      return;
    }
    const bool dense = channels == 1 || (plan_.step == 1 && pixels.channels == pixel && pixels.channels == pixels.block);
    for (size_t r = 0; r < plan_.residues.size(); ++r) {
      const Taps<A> taps = taps_of(r);
      const int64_t n = plan_.residues[r].pixels;
      if (period == 1 && dense) {
        sum_plain<A>(placed, taps, n * channels, out, repeat);
        continue;
      }
      for (int64_t row = 0; row < repeat.rows; ++row) {
        const A* from = placed + row * repeat.step;
        A* to = out + row * repeat.out_step + int64_t(r) * pixel;
        if (channels > 1) {
          sum_plain<A>(from, taps, pixels.channels, to, {n, plan_.step * channels, period * pixel});
        } else {
          sum_plain<A>(from, taps, n, phase_.data(), {1, 0, 0});
          for (int64_t i = 0; i < n; ++i) to[i * period] = phase_.data()[i];
        }
      }
    }
  }

  const Plan<A>& plan_;
  int64_t group_, wide_;   // output rows at a time, and numbers from one to the next
  Lines<A> placed_;        // of zeros, and those around the input stay
  Lines<A> plain_, phase_, finished_;         // a row before it is placed, columns of one phase, rows before they are rounded
  Window<A> placed_rows_;
  std::vector<int64_t> down_;                 // where rows of the input are
  std::vector<std::vector<int64_t>> places_;  // for each residue, where its numbers are in the placed rows
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

  RowsAt<A> operator()(int64_t first, int64_t count) {
    if constexpr (std::is_same_v<T, A>)
      if (direct_) return {x_ + rows_.at(sample_, channel_, first), rows_.width * rows_.stride, true};
    return loaded_(first, count, [&](int64_t i, int64_t count, A* to) {
      for (int64_t r = 0; r < count; ++r, to += loaded_.stride())
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

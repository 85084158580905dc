// Resampling row by row. Everything is a sum of shifted rows: an output row sums input rows, and its columns of one phase
// sum that row shifted by one pixel after the other. So loops run over whole rows, whatever the factors and the number of
// taps; inserted zeros are never multiplied, and all that lies between input and output is a few rows in the cache.
// A pixel is `channels` numbers: 1 in a plane, a block of channels in channels_last.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "../resample.h"
#include "vec.h"

namespace gankernels {
namespace {

// out = sum of w[k] rows[k] over K rows, plus what out holds already with kMore.
template <int K, bool kMore, class A>
[[gnu::always_inline]] inline void sum_rows(const A* const* rows, const A* w, A* __restrict out, int64_t n) {
  const A* row[K];
  A weight[K];
  for (int k = 0; k < K; ++k) row[k] = rows[k], weight[k] = w[k];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    A sum = weight[0] * row[0][i];
    for (int k = 1; k < K; ++k) sum += weight[k] * row[k][i];
    out[i] = kMore ? out[i] + sum : sum;
  }
}

template <bool kMore, class A>
[[gnu::always_inline]] inline int sum_some_rows(const A* const* rows, const A* w, int count, A* out, int64_t n) {
  if (count >= 6) return sum_rows<6, kMore>(rows, w, out, n), 6;
  switch (count) {
    case 5: return sum_rows<5, kMore>(rows, w, out, n), 5;
    case 4: return sum_rows<4, kMore>(rows, w, out, n), 4;
    case 3: return sum_rows<3, kMore>(rows, w, out, n), 3;
    case 2: return sum_rows<2, kMore>(rows, w, out, n), 2;
    default: return sum_rows<1, kMore>(rows, w, out, n), 1;
  }
}

template <class A>
GK_MULTIVERSION void weighted_sum(const A* const* rows, const A* w, int count, A* __restrict out, int64_t n) {
  if (count == 0) {
    for (int64_t i = 0; i < n; ++i) out[i] = 0;
    return;
  }
  for (int done = sum_some_rows<false>(rows, w, count, out, n); done < count;)
    done += sum_some_rows<true>(rows + done, w + done, count - done, out, n);
}

// Pixels in turn to the first row and to the second.
template <class A>
GK_MULTIVERSION void split_in_two(const A* row, A* __restrict first, A* __restrict second, int64_t n) {
  for (int64_t i = 0; i < n / 2; ++i) {
    first[i] = row[2 * i];
    second[i] = row[2 * i + 1];
  }
  if (n % 2) first[n / 2] = row[n - 1];
}

template <class A>
GK_MULTIVERSION void merge_two(const A* first, const A* second, A* __restrict row, int64_t n) {
  for (int64_t i = 0; i < n / 2; ++i) {
    row[2 * i] = first[i];
    row[2 * i + 1] = second[i];
  }
  if (n % 2) row[n - 1] = first[n / 2];
}

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

template <class T, class A>
GK_MULTIVERSION void store_row(const A* row, T* __restrict y, Pixels pixels) {
  if (pixels.dense()) {
    for (int64_t i = 0; i < pixels.count * pixels.channels; ++i) y[i] = T(row[i]);
    return;
  }
  for (int64_t p = 0; p < pixels.count; ++p, y += pixels.stride, row += pixels.block)
    for (int64_t c = 0; c < pixels.channels; ++c) y[c] = T(row[c]);
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
  // Columns o = residue, residue + period, ... of the output, all of one phase.
  struct Residue {
    int64_t pixels;
    std::vector<int64_t> offsets, taps;  // of what is summed: pixel of the placed row, tap
    std::vector<A> weights;              // of a separable filter
  };

  Axis x, y;
  Filter<A> filter;
  int64_t period, step;  // period columns of output further, the input is `step` columns further
  int64_t begin, end;    // input columns that count
  int64_t base, length;  // a placed row starts with input column `base`; column base + i is pixel i / step of part i % step
  std::vector<Residue> residues;

  Plan(Axis x, Axis y, Filter<A> filter_) : x(x), y(y), filter(std::move(filter_)) {
    const int64_t divisor = std::gcd(x.up, x.down);
    period = x.up / divisor;
    step = x.down / divisor;
    base = x.first_input(0);
    const int64_t last = floor_div((x.out - 1) * x.down - x.pad + x.taps - 1, x.up);
    begin = std::clamp<int64_t>(base, 0, x.in);
    end = std::clamp<int64_t>(last + 1, begin, x.in);
    length = std::max<int64_t>(0, ceil_div(last + 1 - base, step)) + 1;
    for (int64_t r = 0; r < std::min(period, x.out); ++r) {
      Residue residue{ceil_div(x.out - r, period), {}, {}};
      int64_t at = x.first_input(r) - base;
      for (int64_t k = x.first_tap(r); k < x.taps; k += x.up, ++at) {
        residue.offsets.push_back(at % step * length + at / step);
        residue.taps.push_back(k);
        if (filter.separable) residue.weights.push_back(filter.across[k]);
      }
      residues.push_back(std::move(residue));
    }
  }
};

// A thread's rows on the way from input to output.
template <class A>
class Stage {
 public:
  Stage(const Plan<A>& plan, int64_t channels)
      : plan_(plan), channels_(channels), slots_(plan.filter.separable ? 1 : plan.y.most_taps()) {
    slot_size_ = plan.step * plan.length * channels;
    placed_.resize(slots_ * slot_size_);  // zeros, and those around the input stay
    held_.resize(slots_);
    if (plan.step > 1) plain_.resize((plan.end - plan.begin) * channels);
    if (plan.period > 1) phases_.resize(plan.period * ceil_div(plan.x.out, plan.period) * channels);
    if (plan.filter.separable)
      for (const auto& residue : plan.residues)
        for (const int64_t offset : residue.offsets) shifted_.push_back(placed_.data() + offset * channels);
    forget();
  }

  void forget() { std::fill(held_.begin(), held_.end(), -1); }  // before another image

  // out = row o of the output; source(i) is row i of the input, which stays where it is until the next call.
  template <class Source>
  void row(int64_t o, Source& source, A* out) {
    const Axis& y = plan_.y;
    const Filter<A>& f = plan_.filter;
    rows_.clear();
    weights_.clear();
    slots_used_.clear();
    int64_t i = y.first_input(o);
    for (int64_t k = y.first_tap(o); k < y.taps; k += y.up, ++i) {
      if (i < 0 || i >= y.in) continue;
      if (f.separable) {
        rows_.push_back(source(i) + plan_.begin * channels_);
        weights_.push_back(f.down[k]);
      } else {
        slots_used_.push_back({hold(i, source), k});
      }
    }
    if (f.separable) {
      const int64_t n = (plan_.end - plan_.begin) * channels_;
      A* at = plan_.step > 1 ? plain_.data() : placed_.data() + (plan_.begin - plan_.base) * channels_;
      weighted_sum(rows_.data(), weights_.data(), int(rows_.size()), at, n);
      if (plan_.step > 1) place(at, placed_.data());
    }
    const A* const* shifted = shifted_.data();
    for (size_t r = 0; r < plan_.residues.size(); ++r) {
      const auto& residue = plan_.residues[r];
      const int64_t n = residue.pixels * channels_;
      A* to = plan_.period > 1 ? phases_.data() + r * phase_size() : out;
      if (f.separable) {
        weighted_sum(shifted, residue.weights.data(), int(residue.weights.size()), to, n);
        shifted += residue.weights.size();
        continue;
      }
      rows_.clear();
      weights_.clear();
      for (const auto& [slot, k] : slots_used_)
        for (size_t j = 0; j < residue.taps.size(); ++j) {
          rows_.push_back(slot + residue.offsets[j] * channels_);
          weights_.push_back(f.matrix[k * f.columns + residue.taps[j]]);
        }
      weighted_sum(rows_.data(), weights_.data(), int(rows_.size()), to, n);
    }
    if (plan_.period > 1) merge(out);
  }

 private:
  int64_t phase_size() const { return ceil_div(plan_.x.out, plan_.period) * channels_; }

  // Row i of the input, placed.
  template <class Source>
  const A* hold(int64_t i, Source& source) {
    const int64_t slot = i % slots_;
    A* at = placed_.data() + slot * slot_size_;
    if (held_[slot] != i) {
      place(source(i) + plan_.begin * channels_, at);
      held_[slot] = i;
    }
    return at;
  }

  // Columns begin to end, apart by their place in a step.
  void place(const A* row, A* placed) {
    const int64_t pixels = plan_.end - plan_.begin, first = plan_.begin - plan_.base, step = plan_.step;
    const auto at = [&](int64_t i) { return placed + (i % step * plan_.length + i / step) * channels_; };
    if (step == 1) {
      std::memcpy(at(first), row, pixels * channels_ * sizeof(A));
    } else if (step == 2 && channels_ == 1) {
      split_in_two(row, at(first), at(first + 1), pixels);
    } else {
      for (int64_t i = 0; i < pixels; ++i) std::memcpy(at(first + i), row + i * channels_, channels_ * sizeof(A));
    }
  }

  void merge(A* out) {
    const int64_t pixels = plan_.x.out, period = plan_.period;
    if (period == 2 && channels_ == 1) {
      merge_two(phases_.data(), phases_.data() + phase_size(), out, pixels);
      return;
    }
    for (int64_t i = 0; i < pixels; ++i) {
      const A* from = phases_.data() + i % period * phase_size() + i / period * channels_;
      std::memcpy(out + i * channels_, from, channels_ * sizeof(A));
    }
  }

  const Plan<A>& plan_;
  int64_t channels_, slots_, slot_size_;
  std::vector<A> placed_, plain_, phases_, weights_;
  std::vector<int64_t> held_;
  std::vector<const A*> rows_, shifted_;  // what is summed: rows, and of a separable filter the placed row shifted
  std::vector<std::pair<const A*, int64_t>> slots_used_;
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

// Rows of an input in the type of the sums, plus a bias; the last `count` rows asked for stay.
template <class T, class A>
class Loader {
 public:
  Loader(const T* x, const Rows& rows, int64_t count, const A* bias) : x_(x), rows_(rows), bias_(bias), held_(count) {
    direct_ = std::is_same_v<T, A> && !bias && rows.block == rows.stride;
    if (!direct_) loaded_.resize(count * rows.width * rows.block);
  }

  void begin(int64_t sample, int64_t channel) {
    sample_ = sample;
    channel_ = channel;
    std::fill(held_.begin(), held_.end(), -1);
  }

  const A* operator()(int64_t i) {
    const T* from = x_ + rows_.at(sample_, channel_, i);
    if constexpr (std::is_same_v<T, A>)
      if (direct_) return from;
    const int64_t slot = i % int64_t(held_.size());
    A* to = loaded_.data() + slot * rows_.width * rows_.block;
    if (held_[slot] != i) {
      load_row(from, to, bias_ ? bias_ + channel_ : nullptr, rows_.pixels(channel_));
      held_[slot] = i;
    }
    return to;
  }

 private:
  const T* x_;
  Rows rows_;
  const A* bias_;
  std::vector<int64_t> held_;
  int64_t sample_ = 0, channel_ = 0;
  bool direct_;
  std::vector<A> loaded_;
};

// Rows of an output, one at a time: where to compute a row, and putting it where it belongs.
template <class T, class A>
class Storer {
 public:
  Storer(T* y, const Rows& rows) : y_(y), rows_(rows), direct_(std::is_same_v<T, A> && rows.block == rows.stride) {
    if (!direct_) row_.resize(rows.width * rows.block);
  }

  template <class Compute>
  void operator()(int64_t sample, int64_t channel, int64_t row, const Compute& compute) {
    T* to = y_ + rows_.at(sample, channel, row);
    if constexpr (std::is_same_v<T, A>)
      if (direct_) return compute(to);
    compute(row_.data());
    store_row(row_.data(), to, rows_.pixels(channel));
  }

 private:
  T* y_;
  Rows rows_;
  bool direct_;
  std::vector<A> row_;
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

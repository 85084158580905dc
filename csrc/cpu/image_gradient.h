// The gradient of a convolution with respect to an image: float or double, one sample and a band of its rows at a time.
//
//   image[c, y, x] = Σ_o Σ_ky Σ_kx w[o, c, ky, kx] g[o, i, j],   i stride_y = y + padding_y − ky,   j stride_x = x + padding_x − kx
//
// Kernels that work in blocks of 16 channels lose 13 of 16 products where an image has three. Here the vectors lie along the pixels.
// Pixels with the same remainders y mod stride_y and x mod stride_x, a phase, use the same taps, each at a fixed distance in g. Between
// zeros, a channel of g is one line, and a phase is a sum of shifted lines, the channels of the image in registers side by side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vec.h"

namespace gankernels::image_gradient {

// One dimension of a convolution: `size` pixels of the image, `count` values of g.
struct Axis {
  int64_t size, count, taps, stride, padding;

  // j = q + shift(phase, tap) for pixel q * stride + phase, if the tap belongs to the phase
  bool belongs(int64_t phase, int64_t tap) const { return (phase + padding - tap) % stride == 0; }
  int64_t shift(int64_t phase, int64_t tap) const { return (phase + padding - tap) / stride; }
  int64_t before() const { return std::max<int64_t>(0, (taps - 1 - padding) / stride); }
  int64_t after() const { return (stride - 1 + padding) / stride; }
  int64_t pixels(int64_t phase) const { return (size - phase + stride - 1) / stride; }
};

constexpr int kMostChannels = 8;

// Pixels in registers: kVectors of them for each of a few channels.
constexpr int kVectors = 4;
template <class T>
constexpr int64_t kTile = kVectors * 64 / sizeof(T);

// Taps of a phase: where they lie in a line of g, and weights (outputs, taps, channels).
template <class T>
struct Phase {
  int64_t y, x;
  std::vector<int64_t> offsets;
  std::vector<T> weights;
};

// out[c, m] = Σ_o Σ_t weights[o, t, c] lines[o, m + offsets[t]]; lines and out reach a tile beyond `positions`
template <class T, int C>
GK_MULTIVERSION void sum_of_shifts(const T* lines, int64_t line, int64_t outputs, const T* weights, const int64_t* offsets,
                                   int64_t taps, T* out, int64_t out_line, int64_t positions) {
  typedef T Vector __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  constexpr int kVectors = C <= 4 ? image_gradient::kVectors : image_gradient::kVectors / 2;
  constexpr int64_t lanes = 64 / sizeof(T);
  for (int64_t m = 0; m < positions; m += kVectors * lanes) {
    Vector sums[C][kVectors] = {};
    const T* w = weights;
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t t = 0; t < taps; ++t, w += C) {
        const T* from = lines + o * line + m + offsets[t];
        Vector x[kVectors];
        for (int v = 0; v < kVectors; ++v) x[v] = *reinterpret_cast<const Vector*>(from + v * lanes);
        for (int c = 0; c < C; ++c)
          for (int v = 0; v < kVectors; ++v) sums[c][v] += x[v] * w[c];
      }
    for (int c = 0; c < C; ++c)
      for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Vector*>(out + c * out_line + m + v * lanes) = sums[c][v];
  }
}

// What does not depend on the sample.
template <class T>
struct Plan {
  Axis y, x;
  int64_t outputs, channels;
  bool pixels;  // channels_last
  std::vector<Phase<T>> phases;
  int64_t pitch, band;  // a row of a line; rows of a phase that are computed together

  // w (outputs, channels, y.taps, x.taps)
  Plan(const T* w, int64_t outputs, int64_t channels, Axis y, Axis x, bool pixels)
      : y(y), x(x), outputs(outputs), channels(channels), pixels(pixels) {
    constexpr int64_t kCache = 384 << 10;  // a part of the second-level cache
    pitch = x.before() + x.pixels(0) + x.after();
    const int64_t fits = kCache / (outputs * pitch * int64_t(sizeof(T))) - y.before() - y.after();
    band = std::clamp<int64_t>(fits, 4, std::max<int64_t>(4, y.pixels(0)));
    for (int64_t py = 0; py < std::min(y.stride, y.size); ++py)
      for (int64_t px = 0; px < std::min(x.stride, x.size); ++px) {
        Phase<T> phase{py, px, {}, {}};
        for (int64_t o = 0; o < outputs; ++o)
          for (int64_t ky = 0; ky < y.taps; ++ky)
            for (int64_t kx = 0; kx < x.taps; ++kx) {
              if (!y.belongs(py, ky) || !x.belongs(px, kx)) continue;
              if (o == 0) phase.offsets.push_back((y.shift(py, ky) + y.before()) * pitch + x.shift(px, kx) + x.before());
              for (int64_t c = 0; c < channels; ++c)
                phase.weights.push_back(w[((o * channels + c) * y.taps + ky) * x.taps + kx]);
            }
        phases.push_back(std::move(phase));
      }
  }
  int64_t bands() const { return (y.pixels(0) + band - 1) / band; }
  int64_t line() const { return (band + y.before() + y.after()) * pitch + kTile<T>; }
  int64_t out_line() const { return band * pitch + kTile<T>; }
  int64_t scratch() const { return outputs * line() + channels * out_line(); }
};

// Rows of g that a band needs, a channel after the other and between zeros.
template <class T>
GK_MULTIVERSION void fill_lines(const Plan<T>& p, const T* g, int64_t first_row, T* lines) {
  const int64_t rows = p.band + p.y.before() + p.y.after(), left = p.x.before(), columns = std::min(p.x.count, p.pitch - left);
  std::memset(lines, 0, p.outputs * p.line() * sizeof(T));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = first_row + r - p.y.before();
    if (i < 0 || i >= p.y.count) continue;
    T* to = lines + r * p.pitch + left;
    if (p.pixels)
      for (int64_t o = 0; o < p.outputs; ++o)
        for (int64_t j = 0; j < columns; ++j) to[o * p.line() + j] = g[(i * p.x.count + j) * p.outputs + o];
    else
      for (int64_t o = 0; o < p.outputs; ++o)
        std::memcpy(to + o * p.line(), g + (o * p.y.count + i) * p.x.count, columns * sizeof(T));
  }
}

// A band of one sample: g (outputs, rows, columns) and image (channels, height, width), or channels last.
template <class T>
void compute_band(const Plan<T>& p, const T* g, int64_t band, T* scratch, T* image) {
  T* sums = scratch + p.outputs * p.line();
  const int64_t first = band * p.band;
  fill_lines(p, g, first, scratch);
  for (const Phase<T>& phase : p.phases) {
    const int64_t rows = std::min(p.band, p.y.pixels(phase.y) - first), taps = phase.offsets.size();
    if (rows <= 0) continue;
    constexpr decltype(&sum_of_shifts<T, 1>) by_channels[kMostChannels] = {
        sum_of_shifts<T, 1>, sum_of_shifts<T, 2>, sum_of_shifts<T, 3>, sum_of_shifts<T, 4>,
        sum_of_shifts<T, 5>, sum_of_shifts<T, 6>, sum_of_shifts<T, 7>, sum_of_shifts<T, 8>};
    const auto sum = by_channels[p.channels - 1];
    sum(scratch, p.line(), p.outputs, phase.weights.data(), phase.offsets.data(), taps, sums, p.out_line(), rows * p.pitch);
    const int64_t plane = p.pixels ? 1 : p.y.size * p.x.size, step = p.pixels ? p.channels : 1;
    for (int64_t c = 0; c < p.channels; ++c)
      for (int64_t r = 0; r < rows; ++r) {
        const T* from = sums + c * p.out_line() + r * p.pitch;
        T* to = image + c * plane + (((first + r) * p.y.stride + phase.y) * p.x.size + phase.x) * step;
        const int64_t pixels = p.x.pixels(phase.x), distance = p.x.stride * step;
        for (int64_t q = 0; q < pixels; ++q) to[q * distance] = from[q];
      }
  }
}

}  // namespace gankernels::image_gradient

// Convolutions with fewer products, by minimal filtering (Winograd 1980; Lavin & Gray 2015, arXiv:1509.09308), in float32:
//
//   4x4, stride 2, padding 1: 36 products for 2x2 outputs of a channel instead of 64
//   3x3, stride 1, padding 1: 16 products instead of 36
//   3x3, stride 2, padding 0 or 1: 25 products instead of 36
//
// Along one dimension, two outputs of R taps are y = Aᵀ[(G w) ⊙ (Bᵀ d)], N = R + 1 products; along two, each matrix from both sides.
// With stride 2 the image's pixels of equal parity, a phase, make an image of their own, whose kernel has the taps of that parity: two
// taps a dimension, over four times the channels. A 3x3 kernel is a 4x4 one without its last taps: where a phase has one tap and a zero,
// the product of the last of the N points is zero, and is left out. The matrices hold 0, ±1 and ½.
//
// The trilinear form Σ_e (A z)_e (G w)_e (Bᵀ d)_e = Σ_i Σ_j z_i w_j d_{i+j} gives the gradient in w as well: Gᵀ[(A g) ⊙ (Bᵀ d)], summed over
// tiles. The gradient in the image is the convolution of g with the taps turned around, phase by phase. In every pass, the products of one of
// the N² positions are a matrix product, over channels (or, for w, over tiles); channels lie side by side in registers. Blocks of tiles are
// transformed, multiplied and transformed back while they are in the cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vec.h"

namespace gankernels::winograd {

constexpr int kLane = 16;   // channels that are transformed together
constexpr int kPanel = 32;  // channels that are multiplied together, or kLane where a group of channels has no more
constexpr int kUnit = 8;    // tiles that are multiplied together

constexpr int64_t panel_of(int64_t channels) { return channels % kPanel == 0 ? kPanel : kLane; }

typedef float Vector __attribute__((vector_size(4 * kLane), aligned(4), may_alias));
GK_INLINE Vector& vector_at(float* p) { return *reinterpret_cast<Vector*>(p); }
GK_INLINE const Vector& vector_at(const float* p) { return *reinterpret_cast<const Vector*>(p); }

// ---------------------------------------------------------------------------------------------------------------------
// The matrices.
// ---------------------------------------------------------------------------------------------------------------------

template <int kKernel, int kStride>
struct Scheme {
  static constexpr int K = kKernel, S = kStride;
  static_assert((K == 4 && S == 2) || (K == 3 && S == 1) || (K == 3 && S == 2));
  static constexpr int taps = K * K, phases = S * S;
  static constexpr int R = (K + S - 1) / S;  // taps of a phase, or one more than it has
  static constexpr int N = R + 1;            // products for two outputs
  static constexpr int positions = N * N;
  static constexpr bool uneven = K % S != 0;  // a phase after the first has a tap less
  static constexpr int taps_of(int phase) { return (K - phase + S - 1) / S; }

  static constexpr int phases_at(int point) { return uneven && point == N - 1 ? 1 : S; }
  // of a position, both dimensions: how many phases have a product there, whether this one has, and the how-manieth it is
  static constexpr int count(int e) { return phases_at(e / N) * phases_at(e % N); }
  static constexpr bool has(int e, int phase) { return phase / S < phases_at(e / N) && phase % S < phases_at(e % N); }
  static constexpr int place(int e, int phase) { return phase / S * phases_at(e % N) + phase % S; }

  // Bᵀ d
  static GK_INLINE void data(const Vector* d, int step, Vector* to) {
    if constexpr (N == 3) {
      to[0] = d[0] - d[step], to[1] = d[step], to[2] = d[2 * step] - d[step];
    } else {
      to[0] = d[0] - d[2 * step], to[1] = d[step] + d[2 * step], to[2] = d[2 * step] - d[step], to[3] = d[step] - d[3 * step];
    }
  }
  // G w
  static GK_INLINE void weights(const Vector* w, int step, Vector* to) {
    if constexpr (N == 3) {
      to[0] = w[0], to[1] = w[0] + w[step], to[2] = w[step];
    } else {
      const Vector ends = w[0] + w[2 * step];
      to[0] = w[0], to[1] = (ends + w[step]) * 0.5f, to[2] = (ends - w[step]) * 0.5f, to[3] = w[2 * step];
    }
  }
  // A z
  static GK_INLINE void outputs_transposed(const Vector* z, int step, Vector* to) {
    if constexpr (N == 3)
      to[0] = z[0], to[1] = z[0] + z[step], to[2] = z[step];
    else
      to[0] = z[0], to[1] = z[0] + z[step], to[2] = z[0] - z[step], to[3] = -z[step];
  }
  // Aᵀ m
  static GK_INLINE void outputs(const Vector* m, int step, Vector* to) {
    if constexpr (N == 3)
      to[0] = m[0] + m[step], to[1] = m[step] + m[2 * step];
    else
      to[0] = m[0] + m[step] + m[2 * step], to[1] = m[step] - m[2 * step] - m[3 * step];
  }
  // Gᵀ m
  static GK_INLINE void weights_transposed(const Vector* m, int step, Vector* to) {
    if constexpr (N == 3) {
      to[0] = m[0] + m[step], to[1] = m[step] + m[2 * step];
    } else {
      const Vector even = (m[step] + m[2 * step]) * 0.5f;
      to[0] = m[0] + even, to[1] = (m[step] - m[2 * step]) * 0.5f, to[2] = even + m[3 * step];
    }
  }
};

// M x Mᵀ for a matrix M of `to` rows and `from` columns, given as a function
#define GK_BOTH_SIDES(function, from, to, x, y)                                              \
  do {                                                                                       \
    Vector half[to * from], line[to];                                                        \
    for (int j = 0; j < from; ++j) {                                                         \
      function((x) + j, from, line);                                                         \
      for (int i = 0; i < to; ++i) half[i * from + j] = line[i];                             \
    }                                                                                        \
    for (int i = 0; i < to; ++i) function(half + i * from, 1, (y) + i * to);                 \
  } while (0)

// ---------------------------------------------------------------------------------------------------------------------
// Images in either memory format. A tile reads and writes pixels of kLane channels.
// ---------------------------------------------------------------------------------------------------------------------

struct Images {
  int64_t samples, channels, height, width;
  bool pixels;  // channels_last
  int64_t plane() const { return height * width; }
  int64_t sample() const { return channels * plane(); }
};

#ifdef __clang__
#define GK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int Lanes __attribute__((vector_size(4 * kLane)));
#define GK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Lanes{__VA_ARGS__})
#endif

GK_INLINE void transpose(Vector* rows) {
#define GK_EXCHANGE(distance, low, high)                         \
  for (int i = 0; i < kLane; ++i)                                \
    if (!(i & distance)) {                                       \
      const Vector a = rows[i], b = rows[i + distance];          \
      rows[i] = GK_SHUFFLE(a, b, low);                           \
      rows[i + distance] = GK_SHUFFLE(a, b, high);               \
    }
#define GK_LIST(...) __VA_ARGS__
  GK_EXCHANGE(8, GK_LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
              GK_LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
  GK_EXCHANGE(4, GK_LIST(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
              GK_LIST(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
  GK_EXCHANGE(2, GK_LIST(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
              GK_LIST(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
  GK_EXCHANGE(1, GK_LIST(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
              GK_LIST(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#undef GK_EXCHANGE
#undef GK_LIST
}

// to[p, l] = planes[l, p] for `count` pixels of kLane planes
GK_INLINE void pixels_of_planes(const float* planes, int64_t plane, int64_t count, float* to) {
  Vector rows[kLane];
  for (int64_t p = 0; p < count; p += kLane, to += kLane * kLane) {
    if (count - p >= kLane) {
      for (int l = 0; l < kLane; ++l) rows[l] = vector_at(planes + l * plane + p);
      transpose(rows);
      for (int l = 0; l < kLane; ++l) vector_at(to + l * kLane) = rows[l];
    } else {
      for (int64_t q = p; q < count; ++q)
        for (int l = 0; l < kLane; ++l) to[(q - p) * kLane + l] = planes[l * plane + q];
    }
  }
}

// planes[l, p] = from[p, l]
GK_INLINE void planes_of_pixels(const float* from, int64_t count, float* planes, int64_t plane) {
  Vector rows[kLane];
  for (int64_t p = 0; p < count; p += kLane, from += kLane * kLane) {
    if (count - p >= kLane) {
      for (int l = 0; l < kLane; ++l) rows[l] = vector_at(from + l * kLane);
      transpose(rows);
      for (int l = 0; l < kLane; ++l) vector_at(planes + l * plane + p) = rows[l];
    } else {
      for (int64_t q = p; q < count; ++q)
        for (int l = 0; l < kLane; ++l) planes[l * plane + q] = from[(q - p) * kLane + l];
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrix products.
// ---------------------------------------------------------------------------------------------------------------------

// A sum of so many products is added to those before: over a thousand channels one long sum would round several times as much.
constexpr int64_t kRun = 128;

// c[m, n] (+)= Σ_k a[m, k] b[k, n] for kUnit rows m and kWide columns n, k from 1. Either a's rows lie side by side in memory, or its
// columns.
template <int kBytes, int kWide, bool kColumns, bool kAdd>
GK_INLINE void multiply_unit(const float* a, int64_t a_line, const float* b, int64_t b_line, int64_t depth, float* c, int64_t c_line) {
  using Register = register_of<float, kBytes>;
  typedef Register Loose __attribute__((aligned(4), may_alias));
  constexpr int lanes = kBytes / 4, rows = kBytes == 64 ? kUnit : kUnit / 2, columns = std::min(2, kWide / lanes);
  for (int m = 0; m < kUnit; m += rows)
    for (int n = 0; n < kWide; n += columns * lanes) {
      const float* from[rows];
      for (int i = 0; i < rows; ++i) from[i] = a + (m + i) * (kColumns ? 1 : a_line);
      const float* right = b + n;
      for (int64_t k = 0, end = 0; k < depth;) {
        Register sums[rows][columns] = {};
        for (end = std::min(depth, end + kRun); k < end; ++k, right += b_line) {
          Register r[columns];
          for (int j = 0; j < columns; ++j) r[j] = *reinterpret_cast<const Loose*>(right + j * lanes);
          for (int i = 0; i < rows; ++i) {
            const float left = kColumns ? from[0][k * a_line + i] : from[i][k];
            for (int j = 0; j < columns; ++j) sums[i][j] += left * r[j];
          }
        }
        for (int i = 0; i < rows; ++i)
          for (int j = 0; j < columns; ++j) {
            Loose& out = *reinterpret_cast<Loose*>(c + (m + i) * c_line + n + j * lanes);
            out = kAdd || end > kRun ? out + sums[i][j] : sums[i][j];
          }
      }
    }
}

// The product for one of the positions: `panels` times `wide` columns, of which kLane or kPanel. Panels of b lie b_panel apart.
struct Product {
  int64_t rows, panels, wide, depth;
  int64_t a_line, b_line, b_panel, c_line;
};
template <bool kColumns, bool kAdd>
void multiply(const Product& p, const float* a, const float* b, float* c) {
  const auto with_width = [&]<int kBytes, int kWide>() GK_INLINE_LAMBDA {
    for (int64_t panel = 0; panel < p.panels; ++panel)
      for (int64_t m = 0; m < p.rows; m += kUnit)
        multiply_unit<kBytes, kWide, kColumns, kAdd>(a + m * (kColumns ? 1 : p.a_line), p.a_line, b + panel * p.b_panel, p.b_line, p.depth,
                                                     c + m * p.c_line + panel * kWide, p.c_line);
  };
  with_registers([&]<int kBytes>() GK_INLINE_LAMBDA {
    p.wide == kPanel ? with_width.template operator()<kBytes, kPanel>() : with_width.template operator()<kBytes, kLane>();
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Tiles. A block is some rows of tiles, of one sample or several; its tiles have `products` transformed values for each channel.
// ---------------------------------------------------------------------------------------------------------------------

struct Grid {
  int64_t samples, tile_rows, row_tiles, padding;
  int64_t rows() const { return samples * tile_rows; }
  int64_t block() const {
    constexpr int64_t kTiles = 64;
    return std::clamp<int64_t>(kTiles / row_tiles, 1, std::max<int64_t>(1, rows()));
  }
  int64_t block_tiles() const { return (block() * row_tiles + kUnit - 1) / kUnit * kUnit; }
};

constexpr int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// Lines, and whole matrices, that lie a power of two apart would share their place in the cache; lines of one register fill it.
constexpr int64_t line_of(int64_t channels) { return channels > kLane ? channels + kLane : channels; }
constexpr int64_t matrix_of(int64_t lines, int64_t line) { return lines * line + kLane; }

// What a tile reads: `patch` pixels a dimension, `step` from tile to tile, the first at origin().
// transform() takes the patch's pixels, from a channel on; values of a product lie product_size apart, values of a phase phase_size.
template <class Scheme>
struct Forward : Scheme {
  using Scheme::K, Scheme::N, Scheme::S;
  static constexpr bool forward = true, shared = true;
  static constexpr int patch = S + K, step = 2 * S;
  static constexpr int64_t origin(int64_t padding) { return -padding; }
  static GK_INLINE void transform(const float* const* at, int64_t channel, float* to, int64_t product_size, int64_t phase_size) {
    for (int py = 0; py < S; ++py)
      for (int px = 0; px < S; ++px) {
        Vector d[N * N] = {}, v[N * N];
        for (int i = 0; i < N && S * i + py < patch; ++i)
          for (int j = 0; j < N && S * j + px < patch; ++j) d[i * N + j] = vector_at(at[(S * i + py) * patch + S * j + px] + channel);
        GK_BOTH_SIDES(Scheme::data, N, N, d, v);
        const int phase = py * S + px;
        for (int e = 0; e < N * N; ++e)
          if (Scheme::has(e, phase)) vector_at(to + e * product_size + Scheme::place(e, phase) * phase_size) = v[e];
      }
  }
};

// Of the gradient g, for the pixels that follow the first 1 - padding. Each phase of the image has products of its own, from a part of
// the patch; of the same part where their taps are one and two.
template <class Scheme>
struct Backward : Scheme {
  using Scheme::K, Scheme::N, Scheme::S;
  static constexpr bool forward = false;
  static constexpr bool shared = S == 1 || Scheme::uneven;
  static constexpr int patch = shared ? N : N + 1, step = 2;
  static constexpr int64_t origin(int64_t) { return Scheme::uneven ? 0 : -1; }
  static constexpr int shift(int phase) { return shared ? 0 : 1 - phase; }
  static constexpr int pixel(int i, int phase) { return S * i + S - 1 - phase; }  // in a tile of the result
  static GK_INLINE void transform(const float* const* at, int64_t channel, float* to, int64_t product_size, int64_t) {
    for (int py = 0; py < (shared ? 1 : S); ++py)
      for (int px = 0; px < (shared ? 1 : S); ++px) {
        Vector d[N * N], v[N * N];
        for (int i = 0; i < N; ++i)
          for (int j = 0; j < N; ++j) d[i * N + j] = vector_at(at[(i + shift(py)) * patch + j + shift(px)] + channel);
        GK_BOTH_SIDES(Scheme::data, N, N, d, v);
        for (int e = 0; e < N * N; ++e) vector_at(to + ((py * S + px) * N * N + e) * product_size) = v[e];
      }
  }
};

// Of g, as the factor of what Forward reads.
template <class Scheme>
struct Outputs : Scheme {
  using Scheme::N;
  static constexpr int patch = 2, step = 2;
  static constexpr int64_t origin(int64_t) { return 0; }
  static GK_INLINE void transform(const float* const* at, int64_t channel, float* to, int64_t product_size, int64_t) {
    Vector z[4], v[N * N];
    for (int i = 0; i < 4; ++i) z[i] = vector_at(at[i] + channel);
    GK_BOTH_SIDES(Scheme::outputs_transposed, 2, N, z, v);
    for (int e = 0; e < N * N; ++e) vector_at(to + e * product_size) = v[e];
  }
};

// Numbers that read_tiles wants for itself.
template <class Tiles>
int64_t reading(const Grid& grid, const Images& images, int64_t channels) {
  const int64_t rows = std::min(grid.block() * Tiles::step + Tiles::patch, images.height);
  return channels + (images.pixels ? 0 : kLane * (rows * images.width + kLane));
}

// Channels [begin, end) of the tiles in rows [first, last). `to` has a line for each tile.
template <class Tiles>
GK_MULTIVERSION void read_tiles(const Grid& grid, const Images& images, const float* source, int64_t begin, int64_t end, int64_t first,
                                int64_t last, float* scratch, float* to, int64_t line, int64_t product_size) {
  const int64_t height = images.height, width = images.width, channels = end - begin, origin = Tiles::origin(grid.padding);
  float *const zeros = scratch, *const lanes = scratch + channels;
  std::memset(zeros, 0, channels * sizeof(float));
  const int64_t group = images.pixels ? channels : kLane;
  for (int64_t channel = 0; channel < channels; channel += group)
    for (int64_t row = first, next; row < last; row = next) {
      const int64_t n = row / grid.tile_rows, before = n * grid.tile_rows;
      next = std::min(last, before + grid.tile_rows);
      const float* image = source + n * images.sample() + (begin + channel) * (images.pixels ? 1 : images.plane());
      int64_t distance = images.channels;
      if (!images.pixels) {
        const int64_t top = std::max<int64_t>(0, (row - before) * Tiles::step + origin);
        const int64_t bottom = std::min<int64_t>(height, (next - 1 - before) * Tiles::step + origin + Tiles::patch);
        pixels_of_planes(image + top * width, images.plane(), (bottom - top) * width, lanes);
        image = lanes - top * width * kLane;
        distance = kLane;
      }
      for (int64_t r = row; r < next; ++r)
        for (int64_t t = 0; t < grid.row_tiles; ++t) {
          const float* at[Tiles::patch * Tiles::patch];
          for (int i = 0; i < Tiles::patch; ++i)
            for (int j = 0; j < Tiles::patch; ++j) {
              const int64_t y = (r - before) * Tiles::step + origin + i, x = t * Tiles::step + origin + j;
              const bool inside = y >= 0 && y < height && x >= 0 && x < width;
              at[i * Tiles::patch + j] = inside ? image + (y * width + x) * distance : zeros;
            }
          float* tile = to + ((r - first) * grid.row_tiles + t) * line + channel;
          for (int64_t k = 0; k < group; k += kLane) Tiles::transform(at, k, tile + k, product_size, channels);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The convolution, and its gradient in the image.
// ---------------------------------------------------------------------------------------------------------------------

template <class Tiles>
struct Convolution : Tiles {
  using Tiles::N, Tiles::S;
  static constexpr int64_t kPart = kLane;  // channels that go through the cache together, if groups are as small
  static constexpr int tile = Tiles::forward ? 2 : 2 * S;  // pixels of the result, a dimension
  static constexpr int products = (Tiles::forward ? 1 : Tiles::phases) * N * N;
  static constexpr int factors = Tiles::shared ? N * N : products;  // transformed values of a channel of the source

  Images from, to;
  int64_t padding, groups;
  int64_t border = Tiles::forward ? 0 : 1 - padding;  // first rows and columns of the result that are not computed
  Grid grid{to.samples, tiles_of(to.height - border, tile), tiles_of(to.width - border, tile), padding};
  int64_t sources = from.channels / groups, results = to.channels / groups;  // channels of a group
  int64_t wide = panel_of(results), panels = results / wide;
  int64_t depth = (Tiles::forward ? Tiles::phases : 1) * sources;  // in groups, of one phase
  int64_t part = std::clamp<int64_t>(kPart / sources, 1, groups);  // groups that are in the cache together

  Convolution(const Images& from, const Images& to, int64_t padding, int64_t groups)
      : from(from), to(to), padding(padding), groups(groups) {}
  int64_t line() const { return line_of(depth * part); }
  int64_t out_line() const { return line_of(results * part); }
  int64_t packed_product() const { return matrix_of(depth, to.channels); }
  int64_t packed() const { return products * packed_product(); }
  int64_t to_pack() const { return panels * from.channels; }
  int64_t writing() const { return to.pixels ? 0 : kLane * (std::min(grid.block() * tile, to.height) * to.width + kLane); }
  int64_t scratch() const {
    return factors * matrix_of(grid.block_tiles(), line()) + products * matrix_of(grid.block_tiles(), out_line()) +
           std::max(reading<Tiles>(grid, from, part * sources), writing());
  }
};

// w (O, C / groups, K, K) to packed (products, panels of all groups, depth, wide); items are channels of the source, panel by panel
template <class C>
GK_MULTIVERSION void pack(const C& c, const float* w, int64_t begin, int64_t end, float* packed) {
  constexpr int S = C::S, N = C::N, R = C::R;
  constexpr bool forward = C::forward;
  const int64_t sources = c.sources, channels = forward ? sources : c.results;  // `channels` of the image, of a group
  for (int64_t item = begin; item < end; ++item)
    for (int half = 0; half < c.wide; half += kLane) {
      const int64_t panel = item / sources, k = item % sources, group = panel / c.panels, first = panel % c.panels * c.wide + half;
      const float* at = w + (forward ? (group * c.results + first) * channels + k : (group * sources + k) * channels + first) * C::taps;
      Vector lines[kLane] = {};
      for (int l = 0; l < kLane; ++l) std::memcpy(&lines[l], at + l * (forward ? channels : 1) * C::taps, C::taps * sizeof(float));
      transpose(lines);
      for (int phase = 0; phase < C::phases; ++phase) {
        const int py = phase / S, px = phase % S, rows = C::taps_of(py), columns = C::taps_of(px);
        Vector t[R * R] = {}, u[N * N];
        for (int i = 0; i < rows; ++i)
          for (int j = 0; j < columns; ++j)
            t[i * R + j] = lines[(S * (forward ? i : rows - 1 - i) + py) * C::K + S * (forward ? j : columns - 1 - j) + px];
        GK_BOTH_SIDES(C::weights, R, N, t, u);
        for (int e = 0; e < N * N; ++e)
          if (C::has(e, phase)) {
            const int64_t product = forward ? e : phase * N * N + e, row = forward ? C::place(e, phase) * sources + k : k;
            vector_at(packed + product * c.packed_product() + (panel * c.depth + row) * c.wide + half) = u[e];
          }
      }
    }
}

// Channels [begin, end) of the tiles in rows [first, last).
template <class C>
GK_MULTIVERSION void write_tiles(const C& c, const float* m, int64_t line, int64_t product_size, const float* bias, int64_t begin,
                                 int64_t end, int64_t first, int64_t last, float* lanes, float* result) {
  constexpr int N = C::N;
  const int64_t height = c.to.height, width = c.to.width, group = c.to.pixels ? end - begin : kLane;
  for (int64_t channel = begin; channel < end; channel += group)
    for (int64_t row = first, next; row < last; row = next) {
      const int64_t n = row / c.grid.tile_rows, before = n * c.grid.tile_rows;
      next = std::min(last, before + c.grid.tile_rows);
      const int64_t top = (row - before) * C::tile + c.border, bottom = std::min<int64_t>(height, (next - before) * C::tile + c.border);
      float* image = result + n * c.to.sample() + channel * (c.to.pixels ? 1 : c.to.plane());
      float* to = c.to.pixels ? image : lanes - top * width * kLane;
      const int64_t distance = c.to.pixels ? c.to.channels : kLane;
      for (int64_t r = row; r < next; ++r)
        for (int64_t t = 0; t < c.grid.row_tiles; ++t)
          for (int64_t k = 0; k < group; k += kLane) {
            const float* at = m + ((r - first) * c.grid.row_tiles + t) * line + channel - begin + k;
            const Vector shift = bias ? vector_at(bias + channel + k) : Vector{};
            for (int phase = 0; phase < C::products / (N * N); ++phase) {
              Vector x[N * N], y[4];
              for (int e = 0; e < N * N; ++e)
                x[e] = C::forward || C::has(e, phase) ? vector_at(at + (phase * N * N + e) * product_size) : Vector{};
              GK_BOTH_SIDES(C::outputs, N, 2, x, y);
              for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 2; ++j) {
                  int64_t py = c.border + (r - before) * C::tile, px = c.border + t * C::tile;
                  if constexpr (C::forward)
                    py += i, px += j;
                  else
                    py += C::pixel(i, phase / C::S), px += C::pixel(j, phase % C::S);
                  if (py < height && px < width) vector_at(to + (py * width + px) * distance + k) = y[i * 2 + j] + shift;
                }
            }
          }
      if (!c.to.pixels) planes_of_pixels(lanes, (bottom - top) * width, image + top * width, c.to.plane());
    }
}

// The rows of tiles from `begin` to `end`, with c.scratch() numbers of scratch.
template <class Tiles>
void compute(const Convolution<Tiles>& c, const float* source, const float* packed, const float* bias, int64_t begin, int64_t end,
             float* scratch, float* result) {
  using C = Convolution<Tiles>;
  const int64_t line = c.line(), out_line = c.out_line();
  const int64_t v_size = matrix_of(c.grid.block_tiles(), line), m_size = matrix_of(c.grid.block_tiles(), out_line);
  float *const v = scratch, *const m = v + C::factors * v_size, *const rest = m + C::products * m_size;
  for (int64_t first = begin, last; first < end; first = last) {
    last = std::min(end, first + c.grid.block());
    const int64_t tiles = tiles_of((last - first) * c.grid.row_tiles, kUnit) * kUnit;
    for (int64_t part = 0; part < c.groups; part += c.part) {
      const int64_t behind = std::min(part + c.part, c.groups);
      read_tiles<Tiles>(c.grid, c.from, source, part * c.sources, behind * c.sources, first, last, rest, v, line, v_size);
      for (int e = 0; e < C::positions; ++e)
        for (int phase = 0; phase < (C::forward ? 1 : C::phases); ++phase) {
          if (!C::forward && !C::has(e, phase)) continue;
          const int product = phase * C::positions + e;
          const int64_t depth = C::forward ? C::count(e) * c.sources : c.depth, group_size = c.panels * c.depth * c.wide;
          for (int64_t group = part; group < behind; ++group)
            multiply<false, false>({tiles, c.panels, c.wide, depth, line, c.wide, c.depth * c.wide, out_line},
                                   v + (C::shared ? e : product) * v_size + (group - part) * c.sources,
                                   packed + product * c.packed_product() + group * group_size,
                                   m + product * m_size + (group - part) * c.results);
        }
      write_tiles(c, m, out_line, m_size, bias, part * c.results, behind * c.results, first, last, rest, result);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The gradient in the weights. Items are parts of the image's channels by parts of g's, of one group; each sums over all tiles, in their
// order.
// ---------------------------------------------------------------------------------------------------------------------

template <class Scheme>
struct Weights : Scheme {
  using Scheme::S;

  Images x, g;
  Grid grid;
  int64_t groups, x_channels = x.channels / groups, g_channels = g.channels / groups;  // of a group
  int64_t wide = panel_of(g_channels);
  int64_t x_part = std::min<int64_t>(x_channels, S == 1 ? 64 : 32), g_part = std::min<int64_t>(g_channels, 4 * kPanel);

  Weights(const Images& x, const Images& g, int64_t padding, int64_t groups, int threads)
      : x(x), g(g), grid{g.samples, tiles_of(g.height, 2), tiles_of(g.width, 2), padding}, groups(groups) {
    while (items() < 2 * threads && x_part % (2 * kLane) == 0) x_part /= 2;
    while (items() < 2 * threads && g_part % (2 * wide) == 0) g_part /= 2;
  }
  int64_t x_parts() const { return tiles_of(x_channels, x_part); }
  int64_t g_parts() const { return tiles_of(g_channels, g_part); }
  int64_t items() const { return groups * x_parts() * g_parts(); }
  int64_t x_line() const { return line_of(S * S * x_part); }
  int64_t g_line() const { return line_of(g_part); }
  int64_t sums_size() const { return matrix_of(S * S * x_part, g_line()); }
  int64_t scratch() const {
    return Scheme::positions * (matrix_of(grid.block_tiles(), x_line()) + matrix_of(grid.block_tiles(), g_line()) + sums_size()) +
           std::max(reading<Forward<Scheme>>(grid, x, x_part), reading<Outputs<Scheme>>(grid, g, g_part));
  }
};

template <class Scheme>
GK_MULTIVERSION void write_weights(const Weights<Scheme>& c, const float* sums, int64_t x_begin, int64_t x_end, int64_t g_begin, int64_t g_end,
                                   int64_t product_size, float* result) {
  constexpr int K = Scheme::K, S = Scheme::S, N = Scheme::N, R = Scheme::R;
  const int64_t channels = x_end - x_begin;
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t o = 0; o < g_end - g_begin; o += kLane) {
      Vector lines[kLane] = {};
      for (int phase = 0; phase < Scheme::phases; ++phase) {
        const int py = phase / S, px = phase % S;
        Vector x[N * N], w[R * R];
        for (int e = 0; e < N * N; ++e)
          x[e] = Scheme::has(e, phase)
                     ? vector_at(sums + e * product_size + (Scheme::place(e, phase) * channels + channel) * c.g_line() + o)
                     : Vector{};
        GK_BOTH_SIDES(Scheme::weights_transposed, N, R, x, w);
        for (int i = 0; i < Scheme::taps_of(py); ++i)
          for (int j = 0; j < Scheme::taps_of(px); ++j) lines[(S * i + py) * K + S * j + px] = w[i * R + j];
      }
      transpose(lines);
      for (int l = 0; l < kLane; ++l)
        std::memcpy(result + ((g_begin + o + l) * c.x_channels + x_begin % c.x_channels + channel) * Scheme::taps, &lines[l],
                    Scheme::taps * sizeof(float));
    }
}

// result (O, C / groups, K, K): one item
template <class Scheme>
void compute(const Weights<Scheme>& c, const float* x, const float* g, int64_t item, float* scratch, float* result) {
  constexpr int products = Scheme::positions;
  const int64_t group = item / c.x_parts() / c.g_parts(), behind_x = (group + 1) * c.x_channels, behind_g = (group + 1) * c.g_channels;
  const int64_t x_begin = group * c.x_channels + item % c.x_parts() * c.x_part, x_end = std::min(x_begin + c.x_part, behind_x);
  const int64_t g_begin = group * c.g_channels + item / c.x_parts() % c.g_parts() * c.g_part, g_end = std::min(g_begin + c.g_part, behind_g);
  const int64_t sums_size = c.sums_size();
  const int64_t v_size = matrix_of(c.grid.block_tiles(), c.x_line()), u_size = matrix_of(c.grid.block_tiles(), c.g_line());
  float *const v = scratch, *const u = v + products * v_size, *const sums = u + products * u_size, *const rest = sums + products * sums_size;
  std::memset(sums, 0, products * sums_size * sizeof(float));
  for (int64_t first = 0, last; first < c.grid.rows(); first = last) {
    last = std::min(c.grid.rows(), first + c.grid.block());
    read_tiles<Forward<Scheme>>(c.grid, c.x, x, x_begin, x_end, first, last, rest, v, c.x_line(), v_size);
    read_tiles<Outputs<Scheme>>(c.grid, c.g, g, g_begin, g_end, first, last, rest, u, c.g_line(), u_size);
    for (int e = 0; e < products; ++e)
      multiply<true, true>({Scheme::count(e) * (x_end - x_begin), (g_end - g_begin) / c.wide, c.wide, (last - first) * c.grid.row_tiles,
                            c.x_line(), c.g_line(), c.wide, c.g_line()},
                           v + e * v_size, u + e * u_size, sums + e * sums_size);
  }
  write_weights(c, sums, x_begin, x_end, g_begin, g_end, sums_size, result);
}

}  // namespace gankernels::winograd

// Convolutions with fewer products, by minimal filtering (Winograd 1980; Lavin & Gray 2015, arXiv:1509.09308), in float32:
//
//   4x4, stride 2, padding 1: 36 products for 2x2 outputs of a channel instead of 64
//   3x3, stride 1, padding 1: 16 products instead of 36
//
// Along one dimension, two outputs of R taps are y = Aᵀ[(G w) ⊙ (Bᵀ d)], N = R + 1 products; along two, each matrix from both sides.
// With stride 2 the image's pixels of equal parity, a phase, make an image of their own, whose kernel has the taps of that parity: two
// taps a dimension, over four times the channels. The matrices hold 0, ±1 and ½.
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
constexpr int kPanel = 32;  // channels that are multiplied together
constexpr int kUnit = 8;    // tiles that are multiplied together

typedef float Vector __attribute__((vector_size(4 * kLane), aligned(4), may_alias));
GK_INLINE Vector& vector_at(float* p) { return *reinterpret_cast<Vector*>(p); }
GK_INLINE const Vector& vector_at(const float* p) { return *reinterpret_cast<const Vector*>(p); }

// ---------------------------------------------------------------------------------------------------------------------
// The matrices.
// ---------------------------------------------------------------------------------------------------------------------

template <int S>
struct Scheme {
  static_assert(S == 1 || S == 2);
  static constexpr int stride = S, phases = S * S;
  static constexpr int N = S == 1 ? 4 : 3;  // products for two outputs
  static constexpr int R = N - 1;           // taps of a phase
  static constexpr int kernel = R * S, taps = kernel * kernel;
  static constexpr int positions = N * N;

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

// c[m, n] (+)= Σ_k a[m, k] b[k, n] for kUnit rows m and kPanel columns n. Either a's rows lie side by side in memory, or its columns.
template <int kBytes, bool kColumns, bool kAdd>
GK_INLINE void multiply_unit(const float* a, int64_t a_line, const float* b, int64_t b_line, int64_t depth, float* c, int64_t c_line) {
  using Register = register_of<float, kBytes>;
  typedef Register Loose __attribute__((aligned(4), may_alias));
  constexpr int lanes = kBytes / 4, rows = kBytes == 64 ? kUnit : kUnit / 2, columns = 2;
  for (int m = 0; m < kUnit; m += rows)
    for (int n = 0; n < kPanel; n += columns * lanes) {
      Register sums[rows][columns] = {};
      const float* from[rows];
      for (int i = 0; i < rows; ++i) from[i] = a + (m + i) * (kColumns ? 1 : a_line);
      const float* right = b + n;
      for (int64_t k = 0; k < depth; ++k, right += b_line) {
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
          out = kAdd ? out + sums[i][j] : sums[i][j];
        }
    }
}

// A matrix product for each of the positions: `panels` times kPanel columns. Panels of b lie b_panel apart.
struct Products {
  int64_t count, rows, panels, depth;
  int64_t a_line, a_size, b_line, b_panel, b_size, c_line, c_size;
};
template <bool kColumns, bool kAdd>
void multiply(const Products& p, const float* a, const float* b, float* c) {
  with_registers([&]<int kBytes>() GK_INLINE_LAMBDA {
    for (int64_t product = 0; product < p.count; ++product)
      for (int64_t panel = 0; panel < p.panels; ++panel)
        for (int64_t m = 0; m < p.rows; m += kUnit)
          multiply_unit<kBytes, kColumns, kAdd>(a + product * p.a_size + m * (kColumns ? 1 : p.a_line), p.a_line,
                                                b + product * p.b_size + panel * p.b_panel, p.b_line, p.depth,
                                                c + product * p.c_size + m * p.c_line + panel * kPanel, p.c_line);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Tiles. A block is some rows of tiles, of one sample or several; its tiles have `products` transformed values for each channel.
// ---------------------------------------------------------------------------------------------------------------------

struct Grid {
  int64_t samples, tile_rows, row_tiles;
  int64_t rows() const { return samples * tile_rows; }
  int64_t block() const {
    constexpr int64_t kTiles = 64;
    return std::clamp<int64_t>(kTiles / row_tiles, 1, std::max<int64_t>(1, rows()));
  }
  int64_t block_tiles() const { return (block() * row_tiles + kUnit - 1) / kUnit * kUnit; }
};

constexpr int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// Lines, and whole matrices, that lie a power of two apart would share their place in the cache.
constexpr int64_t line_of(int64_t channels) { return channels + kLane; }
constexpr int64_t matrix_of(int64_t lines, int64_t line) { return lines * line + kLane; }

// What a tile reads: `patch` pixels a dimension, `step` from tile to tile, the first at `origin`.
// transform() takes the patch's pixels, from a channel on; values of a product lie product_size apart, values of a phase phase_size.
template <int S>
struct Forward : Scheme<S> {
  using Scheme<S>::N;
  static constexpr int patch = N * S, step = 2 * S, origin = -1;
  static GK_INLINE void transform(const float* const* at, int64_t channel, float* to, int64_t product_size, int64_t phase_size) {
    for (int py = 0; py < S; ++py)
      for (int px = 0; px < S; ++px) {
        Vector d[N * N], v[N * N];
        for (int i = 0; i < N; ++i)
          for (int j = 0; j < N; ++j) d[i * N + j] = vector_at(at[(S * i + py) * patch + S * j + px] + channel);
        GK_BOTH_SIDES(Scheme<S>::data, N, N, d, v);
        for (int e = 0; e < N * N; ++e) vector_at(to + e * product_size + (py * S + px) * phase_size) = v[e];
      }
  }
};

// Of the gradient g: each phase of the image has products of its own, from a part of the patch.
template <int S>
struct Backward : Scheme<S> {
  using Scheme<S>::N;
  static constexpr int patch = 4, step = 2, origin = -1;
  static constexpr int shift(int phase) { return (S - 1) * (1 - phase); }
  static GK_INLINE void transform(const float* const* at, int64_t channel, float* to, int64_t product_size, int64_t) {
    for (int py = 0; py < S; ++py)
      for (int px = 0; px < S; ++px) {
        Vector d[N * N], v[N * N];
        for (int i = 0; i < N; ++i)
          for (int j = 0; j < N; ++j) d[i * N + j] = vector_at(at[(i + shift(py)) * patch + j + shift(px)] + channel);
        GK_BOTH_SIDES(Scheme<S>::data, N, N, d, v);
        for (int e = 0; e < N * N; ++e) vector_at(to + ((py * S + px) * N * N + e) * product_size) = v[e];
      }
  }
};

// Of g, as the factor of what Forward reads.
template <int S>
struct Outputs : Scheme<S> {
  using Scheme<S>::N;
  static constexpr int patch = 2, step = 2, origin = 0;
  static GK_INLINE void transform(const float* const* at, int64_t channel, float* to, int64_t product_size, int64_t) {
    Vector z[4], v[N * N];
    for (int i = 0; i < 4; ++i) z[i] = vector_at(at[i] + channel);
    GK_BOTH_SIDES(Scheme<S>::outputs_transposed, 2, N, z, v);
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
  const int64_t height = images.height, width = images.width, channels = end - begin;
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
        const int64_t top = std::max<int64_t>(0, (row - before) * Tiles::step + Tiles::origin);
        const int64_t bottom = std::min<int64_t>(height, (next - 1 - before) * Tiles::step + Tiles::origin + Tiles::patch);
        pixels_of_planes(image + top * width, images.plane(), (bottom - top) * width, lanes);
        image = lanes - top * width * kLane;
        distance = kLane;
      }
      for (int64_t r = row; r < next; ++r)
        for (int64_t t = 0; t < grid.row_tiles; ++t) {
          const float* at[Tiles::patch * Tiles::patch];
          for (int i = 0; i < Tiles::patch; ++i)
            for (int j = 0; j < Tiles::patch; ++j) {
              const int64_t y = (r - before) * Tiles::step + Tiles::origin + i, x = t * Tiles::step + Tiles::origin + j;
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
struct Convolution {
  static constexpr int S = Tiles::stride, N = Tiles::N;
  static constexpr bool forward = std::is_same_v<Tiles, Forward<S>>;
  static constexpr int tile = forward ? 2 : 2 * S;  // pixels of the result, a dimension
  static constexpr int products = (forward ? 1 : Tiles::phases) * N * N;

  Images from, to;
  Grid grid{to.samples, tiles_of(to.height, tile), tiles_of(to.width, tile)};
  int64_t depth = (forward ? Tiles::phases : 1) * from.channels;
  int64_t panels = to.channels / kPanel;

  Convolution(const Images& from, const Images& to) : from(from), to(to) {}
  int64_t packed_product() const { return matrix_of(depth, to.channels); }
  int64_t packed() const { return products * packed_product(); }
  int64_t to_pack() const { return panels * from.channels; }
  int64_t writing() const { return to.pixels ? 0 : kLane * (std::min(grid.block() * tile, to.height) * to.width + kLane); }
  int64_t scratch() const {
    return products * (matrix_of(grid.block_tiles(), line_of(depth)) + matrix_of(grid.block_tiles(), line_of(to.channels))) +
           std::max(reading<Tiles>(grid, from, from.channels), writing());
  }
};

// w (O, C, kernel, kernel) to packed (products, panels, depth, kPanel); items are channels of the source, panel by panel
template <class C>
GK_MULTIVERSION void pack(const C& c, const float* w, int64_t begin, int64_t end, float* packed) {
  constexpr int S = C::S, N = C::N, R = N - 1, kernel = R * S, taps = kernel * kernel;
  const int64_t sources = c.from.channels, channels = C::forward ? sources : c.to.channels;  // `channels` of the image
  for (int64_t item = begin; item < end; ++item)
    for (int half = 0; half < kPanel; half += kLane) {
      const int64_t panel = item / sources, k = item % sources, first = panel * kPanel + half;
      const float* at = w + (C::forward ? first * channels + k : k * channels + first) * taps;
      Vector lines[kLane] = {};
      for (int l = 0; l < kLane; ++l) std::memcpy(&lines[l], at + l * (C::forward ? channels : 1) * taps, taps * sizeof(float));
      transpose(lines);
      for (int py = 0; py < S; ++py)
        for (int px = 0; px < S; ++px) {
          Vector t[R * R], u[N * N];
          for (int i = 0; i < R; ++i)
            for (int j = 0; j < R; ++j) {
              const int ky = S * (C::forward ? i : R - 1 - i) + py, kx = S * (C::forward ? j : R - 1 - j) + px;
              t[i * R + j] = lines[ky * kernel + kx];
            }
          GK_BOTH_SIDES(Scheme<S>::weights, R, N, t, u);
          const int64_t phase = py * S + px, row = C::forward ? phase * sources + k : k;
          for (int e = 0; e < N * N; ++e) {
            const int64_t product = C::forward ? e : phase * N * N + e;
            vector_at(packed + product * c.packed_product() + (panel * c.depth + row) * kPanel + half) = u[e];
          }
        }
    }
}

template <class C>
GK_MULTIVERSION void write_tiles(const C& c, const float* m, int64_t line, int64_t product_size, const float* bias, int64_t first,
                                 int64_t last, float* lanes, float* result) {
  constexpr int S = C::S, N = C::N;
  const int64_t height = c.to.height, width = c.to.width, group = c.to.pixels ? c.to.channels : kLane;
  for (int64_t channel = 0; channel < c.to.channels; channel += group)
    for (int64_t row = first, next; row < last; row = next) {
      const int64_t n = row / c.grid.tile_rows, before = n * c.grid.tile_rows;
      next = std::min(last, before + c.grid.tile_rows);
      const int64_t top = (row - before) * C::tile, bottom = std::min<int64_t>(height, (next - before) * C::tile);
      float* image = result + n * c.to.sample() + channel * (c.to.pixels ? 1 : c.to.plane());
      float* to = c.to.pixels ? image : lanes - top * width * kLane;
      const int64_t distance = c.to.pixels ? c.to.channels : kLane;
      for (int64_t r = row; r < next; ++r)
        for (int64_t t = 0; t < c.grid.row_tiles; ++t)
          for (int64_t k = 0; k < group; k += kLane) {
            const float* at = m + ((r - first) * c.grid.row_tiles + t) * line + channel + k;
            const Vector shift = bias ? vector_at(bias + channel + k) : Vector{};
            for (int phase = 0; phase < C::products / (N * N); ++phase) {
              Vector x[N * N], y[4];
              for (int e = 0; e < N * N; ++e) x[e] = vector_at(at + (phase * N * N + e) * product_size);
              GK_BOTH_SIDES(Scheme<S>::outputs, N, 2, x, y);
              for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 2; ++j) {
                  int64_t py = (r - before) * C::tile + i, px = t * C::tile + j;
                  if constexpr (!C::forward) {
                    py += (S - 1) * i + Backward<S>::shift(phase / S);
                    px += (S - 1) * j + Backward<S>::shift(phase % S);
                  }
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
  const int64_t line = line_of(c.depth), out_line = line_of(c.to.channels);
  const int64_t v_size = matrix_of(c.grid.block_tiles(), line), m_size = matrix_of(c.grid.block_tiles(), out_line);
  float *const v = scratch, *const m = v + C::products * v_size, *const rest = m + C::products * m_size;
  for (int64_t first = begin, last; first < end; first = last) {
    last = std::min(end, first + c.grid.block());
    read_tiles<Tiles>(c.grid, c.from, source, 0, c.from.channels, first, last, rest, v, line, v_size);
    const int64_t tiles = tiles_of((last - first) * c.grid.row_tiles, kUnit) * kUnit;
    multiply<false, false>({C::products, tiles, c.panels, c.depth, line, v_size, kPanel, c.depth * kPanel, c.packed_product(), out_line, m_size},
                           v, packed, m);
    write_tiles(c, m, out_line, m_size, bias, first, last, rest, result);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The gradient in the weights. Items are groups of the image's channels by groups of g's; each sums over all tiles, in their order.
// ---------------------------------------------------------------------------------------------------------------------

template <int S>
struct Weights {
  static constexpr int N = Scheme<S>::N, products = N * N;

  Images x, g;
  Grid grid{g.samples, tiles_of(g.height, 2), tiles_of(g.width, 2)};
  int64_t x_group = S == 1 ? 64 : 32, g_group = 4 * kPanel;

  Weights(const Images& x, const Images& g, int threads) : x(x), g(g) {
    while (items() < 2 * threads && x_group > kLane) x_group /= 2;
    while (items() < 2 * threads && g_group > kPanel) g_group /= 2;
  }
  int64_t x_groups() const { return tiles_of(x.channels, x_group); }
  int64_t items() const { return x_groups() * tiles_of(g.channels, g_group); }
  int64_t x_line() const { return line_of(S * S * x_group); }
  int64_t g_line() const { return line_of(g_group); }
  int64_t sums_size() const { return matrix_of(S * S * x_group, g_line()); }
  int64_t scratch() const {
    return products * (matrix_of(grid.block_tiles(), x_line()) + matrix_of(grid.block_tiles(), g_line()) + sums_size()) +
           std::max(reading<Forward<S>>(grid, x, x_group), reading<Outputs<S>>(grid, g, g_group));
  }
};

template <int S>
GK_MULTIVERSION void write_weights(const Weights<S>& c, const float* sums, int64_t x_begin, int64_t x_end, int64_t g_begin, int64_t g_end,
                                   int64_t product_size, float* result) {
  constexpr int N = Scheme<S>::N, R = N - 1, kernel = R * S, taps = kernel * kernel;
  const int64_t channels = x_end - x_begin;
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t o = 0; o < g_end - g_begin; o += kLane) {
      Vector lines[kLane] = {};
      for (int phase = 0; phase < S * S; ++phase) {
        Vector x[N * N], w[R * R];
        for (int e = 0; e < N * N; ++e) x[e] = vector_at(sums + e * product_size + (phase * channels + channel) * c.g_line() + o);
        GK_BOTH_SIDES(Scheme<S>::weights_transposed, N, R, x, w);
        for (int i = 0; i < R; ++i)
          for (int j = 0; j < R; ++j) lines[(S * i + phase / S) * kernel + S * j + phase % S] = w[i * R + j];
      }
      transpose(lines);
      for (int l = 0; l < kLane; ++l)
        std::memcpy(result + ((g_begin + o + l) * c.x.channels + x_begin + channel) * taps, &lines[l], taps * sizeof(float));
    }
}

// result (O, C, kernel, kernel): one item
template <int S>
void compute(const Weights<S>& c, const float* x, const float* g, int64_t item, float* scratch, float* result) {
  constexpr int products = Weights<S>::products;
  const int64_t x_begin = item % c.x_groups() * c.x_group, x_end = std::min(x_begin + c.x_group, c.x.channels);
  const int64_t g_begin = item / c.x_groups() * c.g_group, g_end = std::min(g_begin + c.g_group, c.g.channels);
  const int64_t rows = S * S * (x_end - x_begin), sums_size = c.sums_size();
  const int64_t v_size = matrix_of(c.grid.block_tiles(), c.x_line()), u_size = matrix_of(c.grid.block_tiles(), c.g_line());
  float *const v = scratch, *const u = v + products * v_size, *const sums = u + products * u_size, *const rest = sums + products * sums_size;
  std::memset(sums, 0, products * sums_size * sizeof(float));
  for (int64_t first = 0, last; first < c.grid.rows(); first = last) {
    last = std::min(c.grid.rows(), first + c.grid.block());
    read_tiles<Forward<S>>(c.grid, c.x, x, x_begin, x_end, first, last, rest, v, c.x_line(), v_size);
    read_tiles<Outputs<S>>(c.grid, c.g, g, g_begin, g_end, first, last, rest, u, c.g_line(), u_size);
    multiply<true, true>({products, rows, (g_end - g_begin) / kPanel, (last - first) * c.grid.row_tiles, c.x_line(), v_size, c.g_line(),
                          kPanel, u_size, c.g_line(), sums_size},
                         v, u, sums);
  }
  write_weights(c, sums, x_begin, x_end, g_begin, g_end, sums_size, result);
}

}  // namespace gankernels::winograd

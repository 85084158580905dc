// Resampling tile by tile. A block stages the input of a tile in shared memory, filters it along the columns and then along
// the rows (or with a matrix at once), and what comes of it is the output or, for filtered_lrelu, the tile of the upsampled
// image that the second filter works on. A tile is taken from a plane or, in channels_last, from a block of channels; a
// lane is a channel of a column.
#pragma once

#include <algorithm>

#include "device.h"

namespace gankernels::cuda {

constexpr int kResampleThreads = 256;
constexpr int kLanesAcross = 32, kRowsDown = kResampleThreads / kLanesAcross;
constexpr int kNegativeBit = 1, kClampedBit = 2;  // of the mask: 2 bits for each number of the upsampled image

// As Axis of csrc/resample.h.
struct Side {
  int up, down, pad, taps, in, out;

  __device__ __host__ int first_input(int o) const {
    const int at = o * down - pad;
    return at >= 0 ? (at + up - 1) / up : -(-at / up);
  }
  __device__ __host__ int first_tap(int o) const { return first_input(o) * up - (o * down - pad); }
  // Inputs that `count` outputs meet, at most.
  __device__ __host__ int inputs(int count) const { return ((count - 1) * down + taps - 1) / up + 1; }
};

struct Resampling {
  Side x, y;
  const void* filter;  // of the type of the sums; taps, or rows of taps
  bool separable, flip;
  __device__ __host__ int taps() const { return separable ? x.taps : x.taps * y.taps; }
};

// Where a batch of images lies: of planes, or of pixels.
struct ImageLayout {
  int64_t sample, channel, row, column;
};

struct Tile {
  int width, height, channels_log2;
};

// The taps and, for each row and column of a tile, the first input, counted from the first one staged, and its tap.
template <class A>
struct StagedFilter {
  A* taps;
  int *x_input, *x_tap, *y_input, *y_tap;
};

template <class A>
size_t filter_bytes(const Resampling& r, int width, int height) {
  return r.taps() * sizeof(A) + 2 * sizeof(int) * (width + height) + 8;
}

// Takes shared memory from `at` on.
template <class A>
__device__ StagedFilter<A> stage_filter(const Resampling& r, int x0, int y0, int width, int height, unsigned char*& at) {
  StagedFilter<A> staged;
  const int taps = r.taps();
  staged.taps = reinterpret_cast<A*>(at);
  staged.x_input = reinterpret_cast<int*>(staged.taps + taps);
  staged.x_tap = staged.x_input + width;
  staged.y_input = staged.x_tap + width;
  staged.y_tap = staged.y_input + height;
  at = reinterpret_cast<unsigned char*>(staged.y_tap + height);
  at += (16 - reinterpret_cast<uintptr_t>(at) % 16) % 16;
  const int thread = static_cast<int>(threadIdx.x);
  const A* filter = static_cast<const A*>(r.filter);
  for (int k = thread; k < taps; k += kResampleThreads) staged.taps[k] = filter[r.flip ? k : taps - 1 - k];
  for (int i = thread; i < width; i += kResampleThreads) {
    staged.x_input[i] = r.x.first_input(x0 + i) - r.x.first_input(x0);
    staged.x_tap[i] = r.x.first_tap(x0 + i);
  }
  for (int i = thread; i < height; i += kResampleThreads) {
    staged.y_input[i] = r.y.first_input(y0 + i) - r.y.first_input(y0);
    staged.y_tap[i] = r.y.first_tap(y0 + i);
  }
  return staged;
}

// store(row, column, channel, value) for each number of a tile; `stride` lanes are in a row of `in` and of `room`.
template <class A, class Store>
__device__ __forceinline__ void filter_tile(const Resampling& r, const StagedFilter<A>& f, const A* in, A* room, int stride,
                                            int width, int height, int channels_log2, const Store& store) {
  const int lane0 = static_cast<int>(threadIdx.x) % kLanesAcross, row0 = static_cast<int>(threadIdx.x) / kLanesAcross;
  const int channels = 1 << channels_log2, lanes = width << channels_log2;
  if (r.separable) {
    for (int row = row0; row < height; row += kRowsDown) {
      const A* from = in + f.y_input[row] * stride;
      const int first = f.y_tap[row];
      for (int lane = lane0; lane < stride; lane += kLanesAcross) {
        A sum = 0;
        const A* at = from + lane;
        for (int k = first; k < r.y.taps; k += r.y.up, at += stride) sum += f.taps[k] * *at;
        room[row * stride + lane] = sum;
      }
    }
    __syncthreads();
  }
  for (int row = row0; row < height; row += kRowsDown) {
    for (int lane = lane0; lane < lanes; lane += kLanesAcross) {
      const int column = lane >> channels_log2, channel = lane & (channels - 1);
      const int input = (f.x_input[column] << channels_log2) + channel;
      A sum = 0;
      if (r.separable) {
        const A* at = room + row * stride + input;
        for (int k = f.x_tap[column]; k < r.x.taps; k += r.x.up, at += channels) sum += f.taps[k] * *at;
      } else {
        const A* from = in + f.y_input[row] * stride + input;
        for (int j = f.y_tap[row]; j < r.y.taps; j += r.y.up, from += stride) {
          const A* at = from;
          for (int k = f.x_tap[column]; k < r.x.taps; k += r.x.up, at += channels) sum += f.taps[j * r.x.taps + k] * *at;
        }
      }
      store(row, column, channel, sum);
    }
  }
}

// Rows and columns from (y0, x0) on, zeros outside the image; with the bias of each channel inside.
template <class T, class A>
__device__ __forceinline__ void stage_input(const T* x, const ImageLayout& at, const T* bias, int channels, int x0, int y0,
                                            int width, int height, int stride, int rows, int channels_log2, A* in) {
  const int lane0 = static_cast<int>(threadIdx.x) % kLanesAcross, row0 = static_cast<int>(threadIdx.x) / kLanesAcross;
  for (int row = row0; row < rows; row += kRowsDown) {
    for (int lane = lane0; lane < stride; lane += kLanesAcross) {
      const int column = x0 + (lane >> channels_log2), channel = lane & ((1 << channels_log2) - 1);
      A value = 0;
      if (column >= 0 && column < width && y0 + row >= 0 && y0 + row < height && channel < channels) {
        value = static_cast<A>(x[(y0 + row) * at.row + column * at.column + channel * at.channel]);
        if (bias) value += static_cast<A>(bias[channel]);
      }
      in[row * stride + lane] = value;
    }
  }
}

// This block's tile of the output.
struct Place {
  int64_t sample;
  int channel, x, y;
};

__device__ __forceinline__ Place place_of_block(const Side& x, const Side& y, int channels, const Tile& tile) {
  const int across = (x.out + tile.width - 1) / tile.width, down = (y.out + tile.height - 1) / tile.height;
  const int blocks = (channels + (1 << tile.channels_log2) - 1) >> tile.channels_log2;
  int64_t block = blockIdx.x;
  Place place;
  place.x = static_cast<int>(block % across) * tile.width;
  block /= across;
  place.y = static_cast<int>(block % down) * tile.height;
  block /= down;
  place.channel = static_cast<int>(block % blocks) << tile.channels_log2;
  place.sample = block / blocks;
  return place;
}

inline int64_t blocks_of(const Side& x, const Side& y, int64_t samples, int64_t channels, const Tile& tile) {
  const int64_t across = (x.out + tile.width - 1) / tile.width, down = (y.out + tile.height - 1) / tile.height;
  return samples * ((channels + (1 << tile.channels_log2) - 1) >> tile.channels_log2) * down * across;
}

// The largest tile, from `tile` on, whose needs(tile) in shared memory are no more than `most` bytes; else the smallest one.
// Widths stay multiples of 4: a byte of the mask belongs to one tile.
template <class Needs>
Tile fitting_tile(Tile tile, size_t most, const Needs& needs) {
  while (needs(tile) > most) {
    if (tile.height > 4 && tile.height >= tile.width) {
      tile.height /= 2;
    } else if (tile.width > 4) {
      tile.width /= 2;
    } else if (tile.channels_log2 > 0) {
      --tile.channels_log2;
    } else if (tile.height > 1) {
      tile.height /= 2;
    } else {
      break;
    }
  }
  return tile;
}

constexpr size_t kSharedBytes = 48 * 1024;  // what a block has without asking

// A tile of planes, or of pixels with 8 channels or more: whole sectors of memory.
inline Tile first_tile(bool channels_last, int channels) {
  if (!channels_last) return {32, 32, 0};
  return {16, 8, channels <= 8 ? 3 : channels <= 16 ? 4 : 5};
}

// ---------------------------------------------------------------------------------------------------------- upfirdn2d

template <class A>
size_t upfirdn2d_bytes(const Resampling& r, const Tile& tile) {
  const size_t stride = static_cast<size_t>(r.x.inputs(tile.width)) << tile.channels_log2;
  return filter_bytes<A>(r, tile.width, tile.height) + 16 +
         stride * (r.y.inputs(tile.height) + (r.separable ? tile.height : 0)) * sizeof(A);
}

template <class T>
__global__ void __launch_bounds__(kResampleThreads, 2)
    upfirdn2d_kernel(const T* x, T* y, Resampling r, ImageLayout in_at, ImageLayout out_at, int channels, Tile tile,
                     accumulate_t<T> gain) {
  using A = accumulate_t<T>;
  GK_DYNAMIC_SHARED(unsigned char, shared);
  const Place place = place_of_block(r.x, r.y, channels, tile);
  const StagedFilter<A> filter = stage_filter<A>(r, place.x, place.y, tile.width, tile.height, shared);
  const int stride = r.x.inputs(tile.width) << tile.channels_log2, rows = r.y.inputs(tile.height);
  A* in = reinterpret_cast<A*>(shared);
  const int left = channels - place.channel;
  x += place.sample * in_at.sample + place.channel * in_at.channel;
  y += place.sample * out_at.sample + place.channel * out_at.channel;
  stage_input<T, A>(x, in_at, nullptr, left, r.x.first_input(place.x), r.y.first_input(place.y), r.x.in, r.y.in, stride,
                    rows, tile.channels_log2, in);
  __syncthreads();
  filter_tile<A>(r, filter, in, in + rows * stride, stride, tile.width, tile.height, tile.channels_log2,
                 [&](int row, int column, int channel, A value) {
                   if (place.x + column < r.x.out && place.y + row < r.y.out && channel < left)
                     y[(place.y + row) * out_at.row + (place.x + column) * out_at.column + channel * out_at.channel] =
                         static_cast<T>(gain * value);
                 });
}

// launch(kernel, blocks, shared bytes, arguments...)
template <class T, class Launch>
void launch_upfirdn2d(const T* x, T* y, const Resampling& r, const ImageLayout& in_at, const ImageLayout& out_at,
                      int64_t samples, int channels, double gain, const Launch& launch) {
  using A = accumulate_t<T>;
  const auto needs = [&](const Tile& tile) { return upfirdn2d_bytes<A>(r, tile); };
  const Tile tile = fitting_tile(first_tile(in_at.channel == 1, channels), kSharedBytes, needs);
  launch(upfirdn2d_kernel<T>, blocks_of(r.x, r.y, samples, channels, tile), needs(tile), x, y, r, in_at, out_at, channels,
         tile, static_cast<A>(gain));
}

// ----------------------------------------------------------------------------------------------------- filtered_lrelu

template <class A>
struct Activation {
  A gain, slope_gain, clamp;
};

enum class Middle { activate, activate_and_keep, multiply };

template <class A>
size_t filtered_lrelu_bytes(const Resampling& up, const Resampling& down, const Tile& tile) {
  const int width = down.x.inputs(tile.width), height = down.y.inputs(tile.height);
  const size_t in_lanes = static_cast<size_t>(up.x.inputs(width)) << tile.channels_log2;
  const size_t lanes = static_cast<size_t>(width) << tile.channels_log2;
  const size_t room = std::max(in_lanes * height, lanes * tile.height);
  return filter_bytes<A>(up, width, height) + filter_bytes<A>(down, tile.width, tile.height) + 48 +
         (in_lanes * up.y.inputs(height) + room + lanes * height) * sizeof(A) + lanes * height;
}

// `up` makes the upsampled image of `x`, `down` the output of that. The mask is written (activate_and_keep) or read (multiply).
template <class T, Middle kMiddle>
__global__ void __launch_bounds__(kResampleThreads, 2)
    filtered_lrelu_kernel(const T* x, const T* bias, T* y, uint8_t* mask, Resampling up, Resampling down, ImageLayout in_at,
                          ImageLayout out_at, ImageLayout mask_at, int channels, Tile tile,
                          Activation<accumulate_t<T>> activation) {
  using A = accumulate_t<T>;
  GK_DYNAMIC_SHARED(unsigned char, shared);
  const Place place = place_of_block(down.x, down.y, channels, tile);
  const int log2 = tile.channels_log2, left = channels - place.channel;
  const int width = down.x.inputs(tile.width), height = down.y.inputs(tile.height);  // of the tile in the middle
  const int x0 = down.x.first_input(place.x), y0 = down.y.first_input(place.y);
  const StagedFilter<A> first = stage_filter<A>(up, x0, y0, width, height, shared);
  const StagedFilter<A> second = stage_filter<A>(down, place.x, place.y, tile.width, tile.height, shared);
  const int in_lanes = up.x.inputs(width) << log2, in_rows = up.y.inputs(height), lanes = width << log2;
  A* in = reinterpret_cast<A*>(shared);
  A* middle = in + in_rows * in_lanes;
  A* room = middle + height * lanes;
  uint8_t* codes = reinterpret_cast<uint8_t*>(room + max(in_lanes * height, lanes * tile.height));
  x += place.sample * in_at.sample + place.channel * in_at.channel;
  y += place.sample * out_at.sample + place.channel * out_at.channel;
  if (bias) bias += place.channel;
  if (kMiddle != Middle::activate) mask += place.sample * mask_at.sample + place.channel * mask_at.channel;

  stage_input<T, A>(x, in_at, bias, left, up.x.first_input(x0), up.y.first_input(y0), up.x.in, up.y.in, in_lanes, in_rows,
                    log2, in);
  __syncthreads();
  filter_tile<A>(up, first, in, room, in_lanes, width, height, log2, [&](int row, int column, int channel, A value) {
    const bool inside =
        x0 + column >= 0 && x0 + column < up.x.out && y0 + row >= 0 && y0 + row < up.y.out && channel < left;
    int code = 0;
    if (kMiddle == Middle::multiply) {
      if (inside) {
        const int at = x0 + column;
        code = mask[(y0 + row) * mask_at.row + at / 4 * mask_at.column + channel * mask_at.channel] >> (at % 4 * 2);
      }
      value *= code & kClampedBit ? A(0) : code & kNegativeBit ? activation.slope_gain : activation.gain;
    } else {
      code = value > 0 ? 0 : kNegativeBit;
      value *= value > 0 ? activation.gain : activation.slope_gain;
      if (value > activation.clamp || value < -activation.clamp) {
        value = value > 0 ? activation.clamp : -activation.clamp;
        code |= kClampedBit;
      }
    }
    const int at = row * lanes + (column << log2) + channel;
    middle[at] = inside ? value : A(0);
    if (kMiddle == Middle::activate_and_keep) codes[at] = inside ? code : 0;
  });
  __syncthreads();
  if (kMiddle == Middle::activate_and_keep) {
    // This tile's own part, up to where the next one's begins; here the upsampled image is not padded, so x0 = place.x down.
    const int own_columns = min(tile.width * down.x.down, up.x.out - x0);
    const int own_rows = min(tile.height * down.y.down, up.y.out - y0);
    const int lane0 = static_cast<int>(threadIdx.x) % kLanesAcross, row0 = static_cast<int>(threadIdx.x) / kLanesAcross;
    const bool last_across = place.x + tile.width >= down.x.out, last_down = place.y + tile.height >= down.y.out;
    const int columns = min(last_across ? up.x.out - x0 : own_columns, width);
    const int rows = min(last_down ? up.y.out - y0 : own_rows, height);
    for (int row = row0; row < rows; row += kRowsDown) {
      for (int lane = lane0; lane < (columns + 3) / 4 << log2; lane += kLanesAcross) {
        const int byte = lane >> log2, channel = lane & ((1 << log2) - 1);
        int packed = 0;
        for (int q = 0; q < 4 && 4 * byte + q < width; ++q)
          packed |= codes[row * lanes + ((4 * byte + q) << log2) + channel] << (2 * q);
        if (channel < left)
          mask[(y0 + row) * mask_at.row + (x0 / 4 + byte) * mask_at.column + channel * mask_at.channel] =
              static_cast<uint8_t>(packed);
      }
    }
  }
  filter_tile<A>(down, second, middle, room, lanes, tile.width, tile.height, log2,
                 [&](int row, int column, int channel, A value) {
                   if (place.x + column < down.x.out && place.y + row < down.y.out && channel < left)
                     y[(place.y + row) * out_at.row + (place.x + column) * out_at.column + channel * out_at.channel] =
                         static_cast<T>(value);
                 });
}

// `gain` is that of the upsampling and the activation together.
template <class T, Middle kMiddle, class Launch>
void launch_filtered_lrelu(const T* x, const T* bias, T* y, uint8_t* mask, const Resampling& up, const Resampling& down,
                           const ImageLayout& in_at, const ImageLayout& out_at, const ImageLayout& mask_at,
                           int64_t samples, int channels, double gain, double slope, double clamp, const Launch& launch) {
  using A = accumulate_t<T>;
  const auto needs = [&](const Tile& tile) { return filtered_lrelu_bytes<A>(up, down, tile); };
  const Tile tile = fitting_tile(first_tile(in_at.channel == 1, channels), kSharedBytes, needs);
  const Activation<A> activation{static_cast<A>(gain), static_cast<A>(gain * slope), static_cast<A>(clamp)};
  launch(filtered_lrelu_kernel<T, kMiddle>, blocks_of(down.x, down.y, samples, channels, tile), needs(tile), x, bias, y,
         mask, up, down, in_at, out_at, mask_at, channels, tile, activation);
}

}  // namespace gankernels::cuda

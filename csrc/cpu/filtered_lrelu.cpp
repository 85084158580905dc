// Upsample, activate, downsample: rows of the upsampled image are computed when a row of the result asks for them, activated,
// and kept while rows of the result still need them, in a ring of as many rows as the second filter has taps.
#include "../filtered_lrelu.h"
#include "pages.h"
#include "resample.h"

namespace gankernels {
namespace {

constexpr int64_t kBand = 131072;  // numbers of the result: bands compute the rows of the upsampled image that they share twice
constexpr int64_t kGroup = 1792;  // as many as stay in the first-level cache

// row = clamp(gain leaky_relu(row)), and with kCodes what its derivative was.
template <bool kCodes, class A>
GK_MULTIVERSION void activate(A* __restrict row, uint8_t* __restrict codes, A gain, A slope_gain, A clamp, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const bool positive = row[i] > 0;
    const A value = row[i] * (positive ? gain : slope_gain), below = value > clamp ? clamp : value;
    row[i] = below < -clamp ? -clamp : below;
    const bool clamped = value > clamp || value < -clamp;
    if (kCodes) codes[i] = uint8_t((positive ? 0 : kNegative) | (clamped ? kClamped : 0));
  }
}

template <class A>
GK_MULTIVERSION void multiply(A* __restrict row, const uint8_t* codes, A gain, A slope_gain, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] *= codes[i] & kClamped ? A(0) : codes[i] & kNegative ? slope_gain : gain;
}

// Four pixels to a byte; `bytes` counts pixels of the mask.
GK_MULTIVERSION void pack(const uint8_t* codes, uint8_t* __restrict mask, Pixels bytes) {
  if (bytes.block == 1) {
    const auto* words = reinterpret_cast<const uint32_t*>(codes);
    for (int64_t i = 0; i < bytes.count; ++i)
      mask[i] = uint8_t(words[i] | words[i] >> 6 | words[i] >> 12 | words[i] >> 18);
    return;
  }
  const int64_t pixel = bytes.block;
  for (int64_t p = 0; p < bytes.count; ++p, codes += 4 * pixel, mask += bytes.stride)
    for (int64_t c = 0; c < bytes.channels; ++c)
      mask[c] = uint8_t(codes[c] | codes[pixel + c] << 2 | codes[2 * pixel + c] << 4 | codes[3 * pixel + c] << 6);
}

GK_MULTIVERSION void unpack(const uint8_t* mask, uint8_t* __restrict codes, Pixels bytes) {
  if (bytes.block == 1) {
    auto* words = reinterpret_cast<uint32_t*>(codes);
    for (int64_t i = 0; i < bytes.count; ++i) {
      const uint32_t byte = mask[i];
      words[i] = (byte | byte << 6 | byte << 12 | byte << 18) & 0x03030303;
    }
    return;
  }
  const int64_t pixel = bytes.block;
  for (int64_t p = 0; p < bytes.count; ++p, codes += 4 * pixel, mask += bytes.stride)
    for (int64_t c = 0; c < bytes.channels; ++c) {
      codes[c] = mask[c];
      codes[pixel + c] = mask[c] >> 2;
      codes[2 * pixel + c] = mask[c] >> 4;
      codes[3 * pixel + c] = mask[c] >> 6;
    }
}

int64_t block_of(int64_t channels, const Axis& up, const Axis& down, bool channels_last) {
  return channels_of_block(channels, std::max({up.in, up.out, down.out}), channels_last);
}

template <class T, class A>
struct Own {
  Loader<T, A> load;
  Stage<A> up, down;
  Window<A> upsampled;
  std::vector<uint32_t> codes;  // of a row of the upsampled image
};

template <class T, class A, class Middle>
void resample_band(Own<T, A>& own, const Plan<A>& up, const Plan<A>& down, T* out, const Rows& rows,
                             const Middle& middle, int64_t sample, int64_t channel, int64_t first, int64_t last) {
  own.load.begin(sample, channel);
  own.up.forget();
  own.down.forget();
  own.upsampled.forget();
  const int64_t begin = first == 0 ? 0 : first * down.y.down - down.y.pad;
  const int64_t end = last == rows.height ? up.y.out : last * down.y.down - down.y.pad;
  const int64_t block = up.channels, width = own.upsampled.stride();
  const auto upsampled = [&](int64_t begin_row, int64_t count) {
    return own.upsampled(begin_row, count, [&](int64_t u, int64_t count, A* row) {
      own.up.rows(u, u + count, own.load, row, width, {up.x.out, block, block, block});
      for (const int64_t end_row = u + count; u < end_row; ++u, row += width)
        middle(row, reinterpret_cast<uint8_t*>(own.codes.data()), sample, channel, u, begin <= u && u < end);
    });
  };
  own.down.rows(first, last, upsampled, out + rows.at(sample, channel, first), rows.width * rows.stride,
                                 rows.pixels(channel));
}

// out = downsample(middle(upsample(x + bias))). middle(row, codes, sample, channel, u, owned) works on row u of
// the upsampled image in place; every row is owned by one band. `codes` is a thread's own room for the codes of a row.
template <class T, class A, class Middle>
void resample(const Tensor& x, const A* bias, const Plan<A>& up, const Plan<A>& down, const Tensor& out,
              bool channels_last, const Middle& middle) {
  const int64_t block = up.channels;
  const Rows in(x, channels_last, block), rows(out, channels_last, block);
  const auto make = [&] {
    Stage<A> before(up, kGroup), after(down, kGroup);
    return Own<T, A>{{data<T>(x), in, before.most_rows(), bias},
                     std::move(before),
                     std::move(after),
                     {up.x.out * block, after.most_rows()},
                     std::vector<uint32_t>(ceil_div(up.x.out, 4) * block)};
  };
  for_each_band(rows, kBand, make, [&](Own<T, A>& own, int64_t sample, int64_t channel, int64_t first, int64_t last) {
    resample_band(own, up, down, mutable_data<T>(out), rows, middle, sample, channel, first, last);
  });
}

std::tuple<Tensor, Tensor> filtered_lrelu(const Tensor& x_, const Tensor& fu, const Tensor& fd, std::optional<Tensor> b,
                                          int64_t up, int64_t down, std::vector<int64_t> padding, double gain,
                                          double slope, std::optional<double> clamp, bool flip_filter, bool save_mask) {
  const char* op = "filtered_lrelu";
  check_cpu(op, "fu", fu);
  check_cpu(op, "fd", fd);
  if (b) check_cpu(op, "b", *b);
  const FilteredSizes sizes = filtered_sizes(op, x_, fu, fd, b, up, down, padding, clamp);
  const auto [x, channels_last] = images_of(x_);
  Tensor y = on_huge_pages(empty_images(x, {x.size(0), x.size(1), sizes.height.out, sizes.width.out}, channels_last));
  Tensor mask = empty_mask(x, sizes, channels_last, save_mask);
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const auto [across, along] = sizes.up_axes();
    const auto [down_across, down_along] = sizes.down_axes();
    const int64_t block = block_of(x.size(1), across, down_across, channels_last), n = across.out * block;
    const Plan<A> upsample(across, along, Filter<A>(as_contiguous(fu), flip_filter, double(up * up)), block);
    const Plan<A> downsample(down_across, down_along, Filter<A>(as_contiguous(fd), flip_filter, 1), block);
    std::vector<A> bias;
    if (b) {
      const Tensor dense = as_contiguous(*b);
      bias.assign(data<T>(dense), data<T>(dense) + dense.numel());
    }
    const std::optional<Rows> bytes = save_mask ? std::optional<Rows>({mask, channels_last, block}) : std::nullopt;
    const A most = clamp ? A(*clamp) : std::numeric_limits<A>::infinity(), low = A(gain * slope);
    const auto middle = [&](A* row, uint8_t* codes, int64_t sample, int64_t channel, int64_t u, bool owned) {
      if (!save_mask || !owned) return activate<false>(row, codes, A(gain), low, most, n);
      activate<true>(row, codes, A(gain), low, most, n);
      pack(codes, mutable_data<uint8_t>(mask) + bytes->at(sample, channel, u), bytes->pixels(channel));
    };
    resample<T, A>(x, b ? bias.data() : nullptr, upsample, downsample, y, channels_last, middle);
  });
  return {y, mask};
}

Tensor filtered_lrelu_bwd(const Tensor& grad_, const Tensor& mask_, const Tensor& fu, const Tensor& fd, int64_t up,
                          int64_t down, std::vector<int64_t> padding, std::vector<int64_t> middle_size,
                          std::vector<int64_t> size, double gain, double slope, bool flip_filter) {
  const char* op = "filtered_lrelu_bwd";
  check_cpu(op, "mask", mask_);
  check_cpu(op, "fu", fu);
  check_cpu(op, "fd", fd);
  const FilteredSizes sizes = masked_sizes(op, grad_, mask_, fu, fd, up, down, padding, middle_size, size);
  const auto [mask, channels_last] = images_of(mask_);
  const Tensor grad = in_format(grad_, channels_last);
  Tensor out = on_huge_pages(empty_images(grad, {grad.size(0), grad.size(1), sizes.height.out, sizes.width.out}, channels_last));
  dispatch_floating(op, grad.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const auto [across, along] = sizes.up_axes();
    const auto [down_across, down_along] = sizes.down_axes();
    const int64_t block = block_of(grad.size(1), across, down_across, channels_last), n = across.out * block;
    const Plan<A> upsample(across, along, Filter<A>(as_contiguous(fu), flip_filter, 1), block);
    const Plan<A> downsample(down_across, down_along, Filter<A>(as_contiguous(fd), flip_filter, 1), block);
    const Rows bytes(mask, channels_last, block);
    const auto middle = [&](A* row, uint8_t* codes, int64_t sample, int64_t channel, int64_t u, bool) {
      unpack(data<uint8_t>(mask) + bytes.at(sample, channel, u), codes, bytes.pixels(channel));
      multiply(row, codes, A(gain), A(gain * slope), n);
    };
    resample<T, A>(grad, nullptr, upsample, downsample, out, channels_last, middle);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("filtered_lrelu", TORCH_BOX(&filtered_lrelu));
  m.impl("filtered_lrelu_bwd", TORCH_BOX(&filtered_lrelu_bwd));
}

}  // namespace gankernels

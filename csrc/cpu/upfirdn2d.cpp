// Upsample, filter, downsample in one pass: a band of rows of a plane, or of a block of channels, at a time.
#include "pages.h"
#include "resample.h"

namespace gankernels {
namespace {

constexpr int64_t kBand = 32768;
constexpr int64_t kGroup = 768;  // so few that memory is read and written most of the time

template <class T, class A>
struct Own {
  Loader<T, A> load;
  Stage<A> stage;
};

Tensor upfirdn2d(const Tensor& x_, const Tensor& f, std::vector<int64_t> up, std::vector<int64_t> down,
                 std::vector<int64_t> padding, bool flip_filter, double gain) {
  const char* op = "upfirdn2d";
  check_cpu(op, "f", f);
  const auto [across, along] = upfirdn2d_axes(op, x_, f, up, down, padding);
  const auto [x, channels_last] = images_of(x_);
  Tensor y = on_huge_pages(empty_images(x, {x.size(0), x.size(1), along.out, across.out}, channels_last));
  const int64_t block = channels_of_block(x.size(1), std::max(across.in, across.out), channels_last);
  const Rows in(x, channels_last, block), out(y, channels_last, block);
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const Plan<A> plan(across, along, Filter<A>(as_contiguous(f), flip_filter, gain), block);
    const auto make = [&] {
      Stage<A> stage(plan, kGroup);
      return Own<T, A>{{data<T>(x), in, stage.most_rows(), nullptr}, std::move(stage)};
    };
    for_each_band(out, kBand, make, [&](Own<T, A>& own, int64_t sample, int64_t channel, int64_t first, int64_t last) {
      own.load.begin(sample, channel);
      own.stage.forget();
      own.stage.rows(first, last, own.load, mutable_data<T>(y) + out.at(sample, channel, first), out.width * out.stride,
                     out.pixels(channel));
    });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) { m.impl("upfirdn2d", TORCH_BOX(&upfirdn2d)); }

}  // namespace gankernels

// From tensors to the arguments of the resampling kernels.
#pragma once

#include <climits>

#include "../resample.h"
#include "launch.h"
#include "resample.cuh"

namespace gankernels::cuda {

inline Side side_of(const char* op, const Axis& a) {
  for (const int64_t value : {a.in * a.up, a.out * a.down, a.pad + a.taps, -a.pad})
    GK_CHECK(value < INT_MAX / 2, op, ": sizes must be less than 2^30 along each axis of the upsampled image, got ", value);
  return {int(a.up), int(a.down), int(a.pad), int(a.taps), int(a.in), int(a.out)};
}

inline Resampling resampling_of(const char* op, const Axis& x, const Axis& y, const Tensor& f, bool flip) {
  return {side_of(op, x), side_of(op, y), f.const_data_ptr(), f.dim() == 1, flip};
}

inline ImageLayout layout_of(const Tensor& t, bool channels_last) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  return channels_last ? ImageLayout{c * h * w, 1, c * w, c} : ImageLayout{c * h * w, h * w, w, 1};
}

inline void check_same_device(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  GK_CHECK(t.is_cuda() && t.get_device_index() == x.get_device_index(), op, ": ", name, " must be on the device of x");
}

struct ResampleLaunch {
  const char* op;
  const Tensor& x;
  template <class Kernel, class... Arguments>
  void operator()(Kernel kernel, int64_t blocks, size_t shared, const Arguments&... arguments) const {
    if (blocks == 0) return;
    GK_CHECK(blocks <= INT_MAX, op, ": too many tiles for a launch, ", blocks);
    if (shared > kSharedBytes) {
      int most = 0;
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, x.get_device_index());
      GK_CHECK(shared <= size_t(most), op, ": the filters must be small enough for a tile to fit into the ", most,
               " bytes of shared memory of this device, got filters that need ", shared);
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    }
    kernel<<<unsigned(blocks), kResampleThreads, shared, current_stream(x)>>>(arguments...);
    check_launch(op);
  }
};

}  // namespace gankernels::cuda

// One launch per dtype for up to 1,625 tensors; see multi_tensor.cuh.
#include "clip_weights.cuh"

#include "../multi_tensor.h"
#include "launch.h"

namespace gankernels::cuda {
namespace {

void clip_weights_(const TensorList& weights, double c) {
  const char* op = "clip_weights_";
  GK_CHECK(std::isfinite(c) && c > 0, op, ": c must be a finite number > 0, got ", c);
  check_weights(op, weights);
  if (weights.empty()) return;
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  const cudaStream_t stream = current_stream(weights[0]);
  FlatMemory memory;
  for (const ScalarType dtype : kFloatingTypes) {
    std::vector<TensorEntry<1>> entries;
    for (const Tensor& w : weights) {
      if (w.scalar_type() == dtype) entries.push_back({{memory.weight(w).mutable_data_ptr()}, w.numel()});
    }
    if (entries.empty()) continue;
    dispatch_floating(op, dtype, [&]<class T>() {
      const accumulate_t<T> bound = static_cast<accumulate_t<T>>(static_cast<T>(static_cast<accumulate_t<T>>(c)));
      for_each_table<T>(entries, [&]<int kCapacity>(const TensorTable<1, kCapacity>& table, int blocks) {
        clip_weights_kernel<T, kCapacity><<<blocks, kThreads, 0, stream>>>(table, bound);
        check_launch(op);
      });
    });
  }
  memory.write_back();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CUDA, m) { m.impl("clip_weights_", TORCH_BOX(&clip_weights_)); }

}  // namespace gankernels::cuda

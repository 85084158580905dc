// w <- clip(w, -c, c). Memory is written only where a weight is out of range: with all in range this is one read of the
// bytes.
#pragma once

#include "multi_tensor.cuh"

namespace gankernels::cuda {

// Comparisons with NaN are false, so NaN stays.
template <class T>
__device__ __forceinline__ bool clip_value(T& w, accumulate_t<T> c) {
  const accumulate_t<T> value = static_cast<accumulate_t<T>>(w);
  if (value > c) {
    w = static_cast<T>(c);
  } else if (value < -c) {
    w = static_cast<T>(-c);
  } else {
    return false;
  }
  return true;
}

// c is representable in T.
template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    clip_weights_kernel(const __grid_constant__ TensorTable<1, kCapacity> table, accumulate_t<T> c) {
  const Span span = span_of_block<T>(table);
  T* weights = static_cast<T*>(table.pointers[0][span.tensor]) + span.begin;
  const int count = static_cast<int>(span.end - span.begin);
  const int thread = static_cast<int>(threadIdx.x);
  if (count == kChunk<T> && is_pack_aligned(weights)) {
    Pack<T> packs[kPacksPerThread];
#pragma unroll
    for (int k = 0; k < kPacksPerThread; ++k) {
      packs[k] = load_pack(weights + (k * kThreads + thread) * Pack<T>::size);
    }
#pragma unroll
    for (int k = 0; k < kPacksPerThread; ++k) {
      bool changed = false;
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j) changed |= clip_value<T>(packs[k].values[j], c);
      if (changed) store_pack(weights + (k * kThreads + thread) * Pack<T>::size, packs[k]);
    }
  } else {
    for (int i = thread; i < count; i += kThreads) {
      T w = weights[i];
      if (clip_value<T>(w, c)) weights[i] = w;
    }
  }
}

}  // namespace gankernels::cuda

// The only header device code includes: CUDA under nvcc, the host emulator of tests/emulator under GANKERNELS_EMULATE.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#if defined(GANKERNELS_EMULATE)
#include "emulator.h"
#define GK_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulator::machine.dynamic_shared)
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// The dynamic shared memory of a kernel as an array of T; `extern __shared__` itself has no meaning on the host.
#define GK_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char gk_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(gk_dynamic_shared)
#endif

namespace gankernels::cuda {

constexpr unsigned int kFullMask = 0xFFFFFFFFu;

// What values of T are computed in.
template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// What one thread moves in one 128-bit access.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* address) {
  return *reinterpret_cast<const Pack<T>*>(address);
}

template <class T>
__device__ __forceinline__ void store_pack(T* address, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(address) = pack;
}

// Null counts as aligned: an absent tensor keeps nobody from 128-bit accesses.
__device__ __forceinline__ bool is_pack_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

}  // namespace gankernels::cuda

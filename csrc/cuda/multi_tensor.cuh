// One launch over many tensors. The table of pointers travels as a kernel argument, by value: nothing to allocate,
// nothing to copy to the device, and a captured graph keeps its own. A block finds its (tensor, chunk) by binary
// search.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "device.h"

namespace gankernels::cuda {

constexpr int kThreads = 256;
constexpr int kPacksPerThread = 4;  // independent 128-bit loads in flight

// A block's share: a multiple of the pack, so that chunks of an aligned tensor are aligned.
template <class T>
constexpr int kChunk = kThreads * kPacksPerThread * Pack<T>::size;

// Offsets within a tensor are 64-bit throughout; chunks are counted in 32 bits (2^31 chunks of 16 KiB are 32 TiB).
template <int kPointers, int kCapacity>
struct TensorTable {
  void* pointers[kPointers][kCapacity];
  int64_t numel[kCapacity];
  int chunk_end[kCapacity];  // chunks of this tensor and all before it
  int tensors;
};

// Kernel arguments hold 32,764 bytes from CUDA 12.1 (sm_70 and newer), 4 KiB before; 256 are left to the other
// arguments. A launch takes up to 1,625 tensors of one pointer (clipping) or 478 of seven (optimisers), so that every
// published GAN is one launch per dtype. The small table spares the launch of a small network the copy of 32 KiB of
// arguments.
#if defined(GANKERNELS_EMULATE) || (defined(CUDART_VERSION) && CUDART_VERSION >= 12010)
constexpr int kArgumentBytes = 32764;
#else
constexpr int kArgumentBytes = 4096;
#endif
template <int kPointers>
constexpr int kLargeTable = (kArgumentBytes - 256) / (8 * kPointers + 12);
constexpr int kSmallTable = 48;

struct Span {
  int tensor;
  int64_t begin, end;
};

template <class T, int kPointers, int kCapacity>
__device__ __forceinline__ Span span_of_block(const TensorTable<kPointers, kCapacity>& table) {
  const int chunk = static_cast<int>(blockIdx.x);
  int low = 0, high = table.tensors - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (chunk < table.chunk_end[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const int first_chunk = low == 0 ? 0 : table.chunk_end[low - 1];
  const int64_t begin = static_cast<int64_t>(chunk - first_chunk) * kChunk<T>;
  const int64_t end = begin + kChunk<T>;
  return {low, begin, end < table.numel[low] ? end : table.numel[low]};
}

// ------------------------------------------------------------------------------------------------------------ host

template <int kPointers>
struct TensorEntry {
  std::array<void*, kPointers> pointers;
  int64_t numel;
};

template <class T, int kCapacity, int kPointers, class Launch>
void launch_tables(const std::vector<TensorEntry<kPointers>>& entries, const Launch& launch) {
  static_assert(sizeof(TensorTable<kPointers, kCapacity>) + 240 <= kArgumentBytes);
  TensorTable<kPointers, kCapacity> table;
  for (size_t first = 0; first < entries.size(); first += kCapacity) {
    table.tensors = static_cast<int>(std::min<size_t>(kCapacity, entries.size() - first));
    int chunks = 0;
    for (int t = 0; t < table.tensors; ++t) {
      const TensorEntry<kPointers>& entry = entries[first + t];
      for (int p = 0; p < kPointers; ++p) table.pointers[p][t] = entry.pointers[p];
      table.numel[t] = entry.numel;
      chunks += static_cast<int>((entry.numel + kChunk<T> - 1) / kChunk<T>);
      table.chunk_end[t] = chunks;
    }
    if (chunks > 0) launch(table, chunks);
  }
}

// launch(table, blocks) with as few tables as hold all entries; empty tensors take no block.
template <class T, int kPointers, class Launch>
void for_each_table(const std::vector<TensorEntry<kPointers>>& entries, const Launch& launch) {
  constexpr int kSmall = kSmallTable < kLargeTable<kPointers> ? kSmallTable : kLargeTable<kPointers>;
  if (entries.size() <= kSmall) {
    launch_tables<T, kSmall>(entries, launch);
  } else {
    launch_tables<T, kLargeTable<kPointers>>(entries, launch);
  }
}

}  // namespace gankernels::cuda

// Power iteration, W / sigma and its derivatives for all layers of a network at once: each kernel is one launch for the
// group.
//
// In memory a weight is (A, O, B): O the rows of the matrix, A * B its columns. A matrix of whole rows (A = 1) is
// multiplied by v with a warp per row and by u with a thread per few columns; slices (A > 1) the other way round. Sums
// go in two stages, of fixed shares in a fixed order, so results do not change from run to run.
#pragma once

#include "multi_tensor.cuh"

namespace gankernels::cuda {

constexpr int kWarps = kThreads / 32;
constexpr int kVectorThreads = 512;  // of the kernels with one block per layer
constexpr int kMostParts = 16;       // into which the long side of a product with a thread per column is cut
constexpr int kLeastPart = 32;       // and the least length of a part

struct SpectralLayer {
  const void* weight;
  void *u, *v;    // the module's buffers
  int64_t at;     // in the workspace: v, u, t, parts
  int64_t uv_at;  // u, then v, in uv
  int rows, slices, inner;
  int leading;  // place m of v in memory holds column (m % leading) * (columns / leading) + m / leading
};

template <int kCapacity>
struct SpectralTable {
  SpectralLayer layers[kCapacity];
  int first_end[kCapacity], second_end[kCapacity];  // blocks of the two passes of this layer and all before it
  int count;
};
constexpr int kLargeSpectralTable = (kArgumentBytes - 256) / static_cast<int>(sizeof(SpectralLayer) + 8);
constexpr int kSmallSpectralTable = 32;

// The workspace of a layer. v comes first and everything starts at a multiple of 16 bytes, for vector loads.
template <class A>
__host__ __device__ constexpr int64_t aligned_length(int64_t length) {
  constexpr int64_t kPack = 16 / sizeof(A);
  return (length + kPack - 1) / kPack * kPack;
}

struct SpectralShape {
  int rows, columns, slices, inner;
  int length, across;  // of the product with a thread per column: what is summed over, and how many sums
  int part, parts;     // length of a part and number of parts

  __host__ __device__ explicit SpectralShape(const SpectralLayer& l)
      : rows(l.rows), columns(l.slices * l.inner), slices(l.slices), inner(l.inner) {
    length = whole_rows() ? rows : slices;
    across = whole_rows() ? columns : rows * inner;
    part = (length + kMostParts - 1) / kMostParts;
    part = part < kLeastPart ? kLeastPart : part;
    parts = (length + part - 1) / part;
  }
  __host__ __device__ bool whole_rows() const { return slices == 1; }
  template <class T>
  __host__ __device__ int tiles() const {
    constexpr int kTile = kThreads * Pack<T>::size;
    return (across + kTile - 1) / kTile;
  }
};

template <class A>
struct Workspace {
  A *v, *u, *t, *parts;
  __device__ Workspace(A* workspace, const SpectralLayer& layer, const SpectralShape& s) {
    v = workspace + layer.at;
    u = v + aligned_length<A>(s.columns);
    t = u + aligned_length<A>(s.rows);
    parts = t + aligned_length<A>(s.rows);
  }
  __host__ static int64_t length(const SpectralShape& s) {
    return aligned_length<A>(s.columns) + 2 * aligned_length<A>(s.rows) +
           aligned_length<A>(int64_t{s.parts} * s.across);
  }
};

__device__ __forceinline__ int column_at(int place, int columns, int leading) {
  return leading == columns ? place : place % leading * (columns / leading) + place / leading;
}

__device__ __forceinline__ int tensor_of_block(const int* ends, int count, int block) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (block < ends[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

template <class V>
__device__ __forceinline__ V warp_sum(V value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullMask, value, offset);
  return value;
}

// The sum over the block, for every thread; blockDim.x is a multiple of 32.
template <class V>
__device__ __forceinline__ V block_sum(V value) {
  __shared__ V sums[32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  value = warp_sum(value);
  __syncthreads();  // sums may still be read from the call before
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  value = lane < static_cast<int>(blockDim.x) / 32 ? sums[lane] : V(0);
  return warp_sum(value);
}

// 1 / max(norm, eps), as torch.nn.functional.normalize has it: NaN stays NaN.
__device__ __forceinline__ double inverse_norm(double square, double inverse_eps) {
  const double inverse = rsqrt(square);
  return inverse > inverse_eps ? inverse_eps : inverse;
}

template <class A, int kCount>
__device__ __forceinline__ void load_values(const A* address, A* values) {
#pragma unroll
  for (int k = 0; k < kCount; k += Pack<A>::size) {
    const Pack<A> pack = load_pack(address + k);
#pragma unroll
    for (int j = 0; j < Pack<A>::size; ++j) values[k + j] = pack.values[j];
  }
}

// <row, v> of a warp's row.
template <class T>
__device__ __forceinline__ accumulate_t<T> row_times(const T* row, const accumulate_t<T>* v, int n) {
  using A = accumulate_t<T>;
  constexpr int kPack = Pack<T>::size;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  A sums[kPack] = {};
  if (n % kPack == 0 && is_pack_aligned(row)) {
#pragma unroll 4
    for (int i = lane * kPack; i < n; i += 32 * kPack) {
      const Pack<T> w = load_pack(row + i);
      A x[kPack];
      load_values<A, kPack>(v + i, x);
#pragma unroll
      for (int k = 0; k < kPack; ++k) sums[k] += static_cast<A>(w.values[k]) * x[k];
    }
  } else {
#pragma unroll 4
    for (int i = lane; i < n; i += 32) sums[0] += static_cast<A>(row[i]) * v[i];
  }
#pragma unroll
  for (int k = 1; k < kPack; ++k) sums[0] += sums[k];
  return warp_sum(sums[0]);
}

// A part of the sums over `length`, for a tile of `across`: parts[part][j] = sum_r W[r, j] c(r, j), where c is u_r for
// whole rows and v[r, j % inner] for slices.
template <class T>
__device__ __forceinline__ void column_sums(const T* w, const accumulate_t<T>* c, bool per_column,
                                            const SpectralShape& s, int block, accumulate_t<T>* parts) {
  using A = accumulate_t<T>;
  constexpr int kPack = Pack<T>::size;
  const int tiles = s.tiles<T>(), part = block / tiles, tile = block % tiles;
  const int first = part * s.part, last = min(first + s.part, s.length);
  const int thread = static_cast<int>(threadIdx.x);
  const bool packed = s.across % kPack == 0 && is_pack_aligned(w);
  const int step = packed ? 1 : kThreads;
  const int base = tile * kThreads * kPack + (packed ? thread * kPack : thread);
  if (base >= s.across) return;
  A sums[kPack] = {};
  int inner[kPack];
#pragma unroll
  for (int k = 0; k < kPack; ++k) inner[k] = per_column ? (base + k * step) % s.inner : 0;
  const int stride = per_column ? s.inner : 1;
#pragma unroll 4
  for (int r = first; r < last; ++r) {
    const T* row = w + int64_t{r} * s.across + base;
    const A* factor = c + int64_t{r} * stride;
    if (packed) {
      const Pack<T> x = load_pack(row);
#pragma unroll
      for (int k = 0; k < kPack; ++k) sums[k] += static_cast<A>(x.values[k]) * factor[inner[k]];
    } else {
#pragma unroll
      for (int k = 0; k < kPack; ++k)
        if (base + k * kThreads < s.across) sums[k] += static_cast<A>(row[k * kThreads]) * factor[inner[k]];
    }
  }
  A* out = parts + int64_t{part} * s.across + base;
#pragma unroll
  for (int k = 0; k < kPack; ++k)
    if (base + k * step < s.across) out[k * step] = sums[k];
}

// ----------------------------------------------------------------------------------------------------- power iteration

template <class T, int kCapacity>
__global__ void __launch_bounds__(kVectorThreads)
    spectral_norm_load_kernel(const __grid_constant__ SpectralTable<kCapacity> table, accumulate_t<T>* workspace) {
  using A = accumulate_t<T>;
  const SpectralLayer& layer = table.layers[blockIdx.x];
  const SpectralShape s(layer);
  const Workspace<A> work(workspace, layer, s);
  const T *u = static_cast<const T*>(layer.u), *v = static_cast<const T*>(layer.v);
  for (int i = static_cast<int>(threadIdx.x); i < s.rows; i += kVectorThreads) work.u[i] = static_cast<A>(u[i]);
  for (int i = static_cast<int>(threadIdx.x); i < s.columns; i += kVectorThreads)
    work.v[i] = static_cast<A>(v[column_at(i, s.columns, layer.leading)]);
}

// t = W v of whole rows; of slices, its parts.
template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    spectral_norm_first_kernel(const __grid_constant__ SpectralTable<kCapacity> table, accumulate_t<T>* workspace) {
  using A = accumulate_t<T>;
  const int index = tensor_of_block(table.first_end, table.count, static_cast<int>(blockIdx.x));
  const int block = static_cast<int>(blockIdx.x) - (index ? table.first_end[index - 1] : 0);
  const SpectralLayer& layer = table.layers[index];
  const SpectralShape s(layer);
  const Workspace<A> work(workspace, layer, s);
  const T* w = static_cast<const T*>(layer.weight);
  if (s.whole_rows()) {
    const int row = block * kWarps + static_cast<int>(threadIdx.x) / 32;
    if (row >= s.rows) return;
    const A t = row_times(w + int64_t{row} * s.columns, work.v, s.columns);
    if (threadIdx.x % 32 == 0) work.t[row] = t;
  } else {
    column_sums(w, work.v, true, s, block, work.parts);
  }
}

// z = W^T u of slices; of whole rows, its parts.
template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    spectral_norm_second_kernel(const __grid_constant__ SpectralTable<kCapacity> table, accumulate_t<T>* workspace) {
  using A = accumulate_t<T>;
  __shared__ A sums[kWarps][32];
  const int index = tensor_of_block(table.second_end, table.count, static_cast<int>(blockIdx.x));
  const int block = static_cast<int>(blockIdx.x) - (index ? table.second_end[index - 1] : 0);
  const SpectralLayer& layer = table.layers[index];
  const SpectralShape s(layer);
  const Workspace<A> work(workspace, layer, s);
  const T* w = static_cast<const T*>(layer.weight);
  if (s.whole_rows()) {
    column_sums(w, work.u, false, s, block, work.parts);
    return;
  }
  // a lane per column, the rows shared out among the warps
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int column = block * 32 + lane;
  A sum = 0;
  if (column < s.columns) {
    const T* x = w + (int64_t{column / s.inner} * s.rows) * s.inner + column % s.inner;
#pragma unroll 4
    for (int o = warp; o < s.rows; o += kWarps) sum += static_cast<A>(x[int64_t{o} * s.inner]) * work.u[o];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= s.columns) return;
  for (int k = 1; k < kWarps; ++k) sum += sums[k][lane];
  work.v[column] = sum;
}

// Of slices, t from its parts.
template <class A>
__device__ __forceinline__ A t_of_row(const Workspace<A>& work, const SpectralShape& s, int row) {
  if (s.whole_rows()) return work.t[row];
  A sum = 0;
  for (int part = 0; part < s.parts; ++part)
    for (int b = 0; b < s.inner; ++b) sum += work.parts[int64_t{part} * s.across + row * s.inner + b];
  return sum;
}

// u = t / max(|t|, eps); one block per layer.
template <class A, int kCapacity>
__global__ void __launch_bounds__(kVectorThreads)
    spectral_norm_u_kernel(const __grid_constant__ SpectralTable<kCapacity> table, A* workspace, double inverse_eps) {
  const SpectralLayer& layer = table.layers[blockIdx.x];
  const SpectralShape s(layer);
  const Workspace<A> work(workspace, layer, s);
  double square = 0;
  for (int i = static_cast<int>(threadIdx.x); i < s.rows; i += kVectorThreads) {
    const A t = t_of_row(work, s, i);
    work.u[i] = t;
    square += static_cast<double>(t) * static_cast<double>(t);
  }
  const double inverse = inverse_norm(block_sum(square), inverse_eps);
  for (int i = static_cast<int>(threadIdx.x); i < s.rows; i += kVectorThreads)
    work.u[i] = static_cast<A>(work.u[i] * inverse);
}

// v = z / max(|z|, eps) and sigma = u^T W v = |z|^2 / max(|z|, eps); after the last iteration to the buffers and uv as
// well.
template <class T, int kCapacity>
__global__ void __launch_bounds__(kVectorThreads)
    spectral_norm_v_kernel(const __grid_constant__ SpectralTable<kCapacity> table, accumulate_t<T>* workspace,
                           accumulate_t<T>* uv, accumulate_t<T>* sigma, double inverse_eps, bool last) {
  using A = accumulate_t<T>;
  const SpectralLayer& layer = table.layers[blockIdx.x];
  const SpectralShape s(layer);
  const Workspace<A> work(workspace, layer, s);
  const int thread = static_cast<int>(threadIdx.x);
  double square = 0;
  for (int i = thread; i < s.columns; i += kVectorThreads) {
    A z = work.v[i];
    if (s.whole_rows()) {
      z = 0;
#pragma unroll 4
      for (int part = 0; part < s.parts; ++part) z += work.parts[int64_t{part} * s.columns + i];
      work.v[i] = z;
    }
    square += static_cast<double>(z) * static_cast<double>(z);
  }
  square = block_sum(square);
  const double inverse = inverse_norm(square, inverse_eps);
#pragma unroll 1  // or sm_100 spills
  for (int i = thread; i < s.columns; i += kVectorThreads) {
    const A value = static_cast<A>(work.v[i] * inverse);
    work.v[i] = value;
    if (last) {
      const int column = column_at(i, s.columns, layer.leading);
      static_cast<T*>(layer.v)[column] = static_cast<T>(value);
      uv[layer.uv_at + s.rows + column] = value;
    }
  }
  if (!last) return;
  for (int i = thread; i < s.rows; i += kVectorThreads) {
    static_cast<T*>(layer.u)[i] = static_cast<T>(work.u[i]);
    uv[layer.uv_at + i] = work.u[i];
  }
  if (thread == 0) sigma[blockIdx.x] = static_cast<A>(square * inverse);
}

// sigma = u^T W v of the vectors as they are, from t; one block per layer.
template <class A, int kCapacity>
__global__ void __launch_bounds__(kVectorThreads)
    spectral_norm_sigma_kernel(const __grid_constant__ SpectralTable<kCapacity> table, A* workspace, A* uv, A* sigma) {
  const SpectralLayer& layer = table.layers[blockIdx.x];
  const SpectralShape s(layer);
  const Workspace<A> work(workspace, layer, s);
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int i = thread; i < s.rows; i += kVectorThreads) {
    sum += static_cast<double>(t_of_row(work, s, i)) * static_cast<double>(work.u[i]);
    uv[layer.uv_at + i] = work.u[i];
  }
  for (int i = thread; i < s.columns; i += kVectorThreads)
    uv[layer.uv_at + s.rows + column_at(i, s.columns, layer.leading)] = work.v[i];
  sum = block_sum(sum);
  if (thread == 0) sigma[blockIdx.x] = static_cast<A>(sum);
}

// ---------------------------------------------------------------------------------------------- W / sigma, derivatives

enum NormalizeColumn { kNormalizeWeight, kNormalizeOut, kNormalizeSigma, kNormalizeColumns };

// out = W / sigma.
template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    spectral_normalize_kernel(const __grid_constant__ TensorTable<kNormalizeColumns, kCapacity> table) {
  using A = accumulate_t<T>;
  const Span span = span_of_block<T>(table);
  const T* w = static_cast<const T*>(table.pointers[kNormalizeWeight][span.tensor]) + span.begin;
  T* out = static_cast<T*>(table.pointers[kNormalizeOut][span.tensor]) + span.begin;
  const A inverse = A(1) / *static_cast<const A*>(table.pointers[kNormalizeSigma][span.tensor]);
  const int count = static_cast<int>(span.end - span.begin), thread = static_cast<int>(threadIdx.x);
  const int packs = is_pack_aligned(w) && is_pack_aligned(out) ? count / Pack<T>::size : 0;
#pragma unroll 4
  for (int i = thread; i < packs; i += kThreads) {
    Pack<T> pack = load_pack(w + i * Pack<T>::size);
#pragma unroll
    for (int k = 0; k < Pack<T>::size; ++k) pack.values[k] = static_cast<T>(inverse * static_cast<A>(pack.values[k]));
    store_pack(out + i * Pack<T>::size, pack);
  }
  for (int i = packs * Pack<T>::size + thread; i < count; i += kThreads)
    out[i] = static_cast<T>(inverse * static_cast<A>(w[i]));
}

// A layer of the derivatives. grad_grad and grads_out are null in the first.
struct SpectralGradient {
  const void *grad_grad, *grad, *weight;
  void *grads_out, *weights_out;
  int64_t uv_at, numel;
  int sigma_at, rows, slices, inner, leading;
};

template <int kCapacity>
struct GradientTable {
  SpectralGradient layers[kCapacity];
  int chunk_end[kCapacity];
  int count;
};
constexpr int kLargeGradientTable = (kArgumentBytes - 256) / static_cast<int>(sizeof(SpectralGradient) + 4);
constexpr int kSmallGradientTable = 32;

// u_o v_m of the elements of a chunk, without a 64-bit division for each.
template <class A>
struct RankOne {
  const A *u, *v;
  int rows, columns, inner, leading;
  int slice, row, within;  // of the chunk's first element

  __device__ RankOne(const SpectralGradient& layer, const A* uv, int64_t begin)
      : u(uv + layer.uv_at),
        v(u + layer.rows),
        rows(layer.rows),
        columns(layer.slices * layer.inner),
        inner(layer.inner),
        leading(layer.leading) {
    within = static_cast<int>(begin % inner);
    row = static_cast<int>(begin / inner % rows);
    slice = static_cast<int>(begin / inner / rows);
  }

  __device__ __forceinline__ A operator()(int i) const {
    const int b = within + i, o = row + b / inner;
    return u[o % rows] * v[column_at((slice + o / rows) * inner + b % inner, columns, leading)];
  }
};

template <int kCapacity>
struct GradientChunk {
  const SpectralGradient& layer;
  int index;
  int64_t begin;
  int count;
};

template <class T, int kCapacity>
__device__ __forceinline__ GradientChunk<kCapacity> gradient_chunk(const GradientTable<kCapacity>& table) {
  const int block = static_cast<int>(blockIdx.x), index = tensor_of_block(table.chunk_end, table.count, block);
  const SpectralGradient& layer = table.layers[index];
  const int64_t begin = int64_t{block - (index ? table.chunk_end[index - 1] : 0)} * kChunk<T>;
  const int64_t left = layer.numel - begin;
  return {layer, index, begin, static_cast<int>(left < kChunk<T> ? left : kChunk<T>)};
}

// body(first, values...) for packs of consecutive elements of the chunk; the loads of a thread are independent.
template <class T, class Body>
__device__ __forceinline__ void for_each_pack(int count, bool aligned, const Body& body) {
  const int thread = static_cast<int>(threadIdx.x);
  const int packs = aligned ? count / Pack<T>::size : 0;
#pragma unroll 2
  for (int i = thread; i < packs; i += kThreads) body(std::integral_constant<int, Pack<T>::size>{}, i * Pack<T>::size);
  for (int i = packs * Pack<T>::size + thread; i < count; i += kThreads) body(std::integral_constant<int, 1>{}, i);
}

template <class T, int kCount>
__device__ __forceinline__ void load_elements(const T* address, T* values) {
  if constexpr (kCount == Pack<T>::size) {
    const Pack<T> pack = load_pack(address);
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = pack.values[k];
  } else {
    values[0] = *address;
  }
}

template <class T, int kCount>
__device__ __forceinline__ void store_elements(T* address, const T* values) {
  if constexpr (kCount == Pack<T>::size) {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kCount; ++k) pack.values[k] = values[k];
    store_pack(address, pack);
  } else {
    *address = values[0];
  }
}

// Of each chunk <G, W>, and for the second derivative <H, G> and u^T H v: partial[3][blocks].
template <class T, bool kSecond, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    spectral_normalize_dots_kernel(const __grid_constant__ GradientTable<kCapacity> table, const accumulate_t<T>* uv,
                                   accumulate_t<T>* partial) {
  using A = accumulate_t<T>;
  const auto chunk = gradient_chunk<T>(table);
  const T* g = static_cast<const T*>(chunk.layer.grad) + chunk.begin;
  const T* w = static_cast<const T*>(chunk.layer.weight) + chunk.begin;
  const T* h = kSecond ? static_cast<const T*>(chunk.layer.grad_grad) + chunk.begin : nullptr;
  const RankOne<A> rank_one(chunk.layer, uv, chunk.begin);
  A gw = 0, hg = 0, q = 0;
  for_each_pack<T>(chunk.count, is_pack_aligned(g) && is_pack_aligned(w) && is_pack_aligned(h), [&](auto size, int i) {
    constexpr int kCount = decltype(size)::value;
    T gs[kCount], ws[kCount];
    [[maybe_unused]] T hs[kCount];
    load_elements<T, kCount>(g + i, gs);
    load_elements<T, kCount>(w + i, ws);
    if constexpr (kSecond) load_elements<T, kCount>(h + i, hs);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      gw += static_cast<A>(gs[k]) * static_cast<A>(ws[k]);
      if constexpr (kSecond) {
        hg += static_cast<A>(hs[k]) * static_cast<A>(gs[k]);
        q += static_cast<A>(hs[k]) * rank_one(i + k);
      }
    }
  });
  gw = block_sum(gw);
  if (threadIdx.x == 0) partial[blockIdx.x] = gw;
  if constexpr (kSecond) {
    hg = block_sum(hg);
    q = block_sum(q);
    if (threadIdx.x == 0) {
      partial[gridDim.x + blockIdx.x] = hg;
      partial[2 * gridDim.x + blockIdx.x] = q;
    }
  }
}

// dots[kind][layer] = sum over the layer's chunks; grid (layer, kind).
template <class A, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    spectral_normalize_sum_kernel(const __grid_constant__ GradientTable<kCapacity> table, const A* partial, A* dots,
                                  int chunks) {
  const int index = static_cast<int>(blockIdx.x), kind = static_cast<int>(blockIdx.y);
  double sum = 0;
  for (int i = (index ? table.chunk_end[index - 1] : 0) + static_cast<int>(threadIdx.x); i < table.chunk_end[index];
       i += kThreads)
    sum += static_cast<double>(partial[int64_t{kind} * chunks + i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) dots[kind * kCapacity + index] = static_cast<A>(sum);
}

// weights_out = G / sigma - <G, W> / sigma^2 u v^T.
template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    spectral_normalize_bwd_kernel(const __grid_constant__ GradientTable<kCapacity> table, const accumulate_t<T>* uv,
                                  const accumulate_t<T>* sigma, const accumulate_t<T>* dots) {
  using A = accumulate_t<T>;
  const auto chunk = gradient_chunk<T>(table);
  const T* g = static_cast<const T*>(chunk.layer.grad) + chunk.begin;
  T* out = static_cast<T*>(chunk.layer.weights_out) + chunk.begin;
  const RankOne<A> rank_one(chunk.layer, uv, chunk.begin);
  const A inverse = A(1) / sigma[chunk.layer.sigma_at], along = -dots[chunk.index] * inverse * inverse;
  for_each_pack<T>(chunk.count, is_pack_aligned(g) && is_pack_aligned(out), [&](auto size, int i) {
    constexpr int kCount = decltype(size)::value;
    T values[kCount];
    load_elements<T, kCount>(g + i, values);
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      values[k] = static_cast<T>(inverse * static_cast<A>(values[k]) + along * rank_one(i + k));
    store_elements<T, kCount>(out + i, values);
  });
}

// With q = u^T H v: grads_out = H / sigma - q / sigma^2 W,
// weights_out = -q / sigma^2 G + (2 <G, W> q / sigma^3 - <H, G> / sigma^2) u v^T.
template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    spectral_normalize_bwd_bwd_kernel(const __grid_constant__ GradientTable<kCapacity> table, const accumulate_t<T>* uv,
                                      const accumulate_t<T>* sigma, const accumulate_t<T>* dots) {
  using A = accumulate_t<T>;
  const auto chunk = gradient_chunk<T>(table);
  const T* h = static_cast<const T*>(chunk.layer.grad_grad) + chunk.begin;
  const T* g = static_cast<const T*>(chunk.layer.grad) + chunk.begin;
  const T* w = static_cast<const T*>(chunk.layer.weight) + chunk.begin;
  T* grads_out = static_cast<T*>(chunk.layer.grads_out) + chunk.begin;
  T* weights_out = static_cast<T*>(chunk.layer.weights_out) + chunk.begin;
  const RankOne<A> rank_one(chunk.layer, uv, chunk.begin);
  const A inverse = A(1) / sigma[chunk.layer.sigma_at];
  const A gw = dots[chunk.index] * inverse, hg = dots[kCapacity + chunk.index] * inverse;
  const A q = dots[2 * kCapacity + chunk.index] * inverse, down = -q * inverse, along = (2 * gw * q - hg) * inverse;
  const bool aligned = is_pack_aligned(h) && is_pack_aligned(g) && is_pack_aligned(w) && is_pack_aligned(grads_out) &&
                       is_pack_aligned(weights_out);
  for_each_pack<T>(chunk.count, aligned, [&](auto size, int i) {
    constexpr int kCount = decltype(size)::value;
    T hs[kCount], gs[kCount], ws[kCount];
    load_elements<T, kCount>(h + i, hs);
    load_elements<T, kCount>(g + i, gs);
    load_elements<T, kCount>(w + i, ws);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      hs[k] = static_cast<T>(inverse * static_cast<A>(hs[k]) + down * static_cast<A>(ws[k]));
      gs[k] = static_cast<T>(down * static_cast<A>(gs[k]) + along * rank_one(i + k));
    }
    store_elements<T, kCount>(grads_out + i, hs);
    store_elements<T, kCount>(weights_out + i, gs);
  });
}

// ---------------------------------------------------------------------------------------------------------------- host
// `launch(kernel, grid, threads, arguments...)` is what differs between a stream and the emulator.

// Sets each layer's place in the workspace; returns the workspace's length in elements of A.
template <class A>
int64_t place_in_workspace(std::vector<SpectralLayer>& layers) {
  int64_t length = 0;
  for (SpectralLayer& layer : layers) {
    layer.at = length;
    length += Workspace<A>::length(SpectralShape(layer));
  }
  return length;
}

template <class T, int kCapacity, class Launch>
void power_iteration_tables(const std::vector<SpectralLayer>& layers, accumulate_t<T>* workspace, accumulate_t<T>* uv,
                            accumulate_t<T>* sigma, int64_t iterations, double eps, const Launch& launch) {
  using A = accumulate_t<T>;
  SpectralTable<kCapacity> table;
  for (size_t first = 0; first < layers.size(); first += kCapacity) {
    table.count = static_cast<int>(std::min<size_t>(kCapacity, layers.size() - first));
    int first_blocks = 0, second_blocks = 0;
    for (int i = 0; i < table.count; ++i) {
      table.layers[i] = layers[first + i];
      const SpectralShape s(table.layers[i]);
      const int by_rows = s.whole_rows() ? (s.rows + kWarps - 1) / kWarps : (s.columns + 31) / 32;
      const int by_columns = s.tiles<T>() * s.parts;
      table.first_end[i] = first_blocks += s.whole_rows() ? by_rows : by_columns;
      table.second_end[i] = second_blocks += s.whole_rows() ? by_columns : by_rows;
    }
    A* const sigmas = sigma + first;
    launch(spectral_norm_load_kernel<T, kCapacity>, table.count, kVectorThreads, table, workspace);
    if (iterations == 0) {
      if (first_blocks) launch(spectral_norm_first_kernel<T, kCapacity>, first_blocks, kThreads, table, workspace);
      launch(spectral_norm_sigma_kernel<A, kCapacity>, table.count, kVectorThreads, table, workspace, uv, sigmas);
    }
    for (int64_t k = 0; k < iterations; ++k) {
      if (first_blocks) launch(spectral_norm_first_kernel<T, kCapacity>, first_blocks, kThreads, table, workspace);
      launch(spectral_norm_u_kernel<A, kCapacity>, table.count, kVectorThreads, table, workspace, 1 / eps);
      if (second_blocks) launch(spectral_norm_second_kernel<T, kCapacity>, second_blocks, kThreads, table, workspace);
      launch(spectral_norm_v_kernel<T, kCapacity>, table.count, kVectorThreads, table, workspace, uv, sigmas, 1 / eps,
             k + 1 == iterations);
    }
  }
}

template <class T, class Launch>
void launch_power_iteration(const std::vector<SpectralLayer>& layers, accumulate_t<T>* workspace, accumulate_t<T>* uv,
                            accumulate_t<T>* sigma, int64_t iterations, double eps, const Launch& launch) {
  if (layers.size() <= kSmallSpectralTable) {
    power_iteration_tables<T, kSmallSpectralTable>(layers, workspace, uv, sigma, iterations, eps, launch);
  } else {
    power_iteration_tables<T, kLargeSpectralTable>(layers, workspace, uv, sigma, iterations, eps, launch);
  }
}

// Elements of A that the derivatives need besides their arguments: chunks' sums, and layers'.
template <class T>
int64_t gradient_workspace(const std::vector<SpectralGradient>& layers) {
  int64_t chunks = 0;
  for (const SpectralGradient& layer : layers) chunks += (layer.numel + kChunk<T> - 1) / kChunk<T>;
  return 3 * (chunks + kLargeGradientTable);
}

template <class T, bool kSecond, int kCapacity, class Launch>
void gradient_tables(const std::vector<SpectralGradient>& layers, accumulate_t<T>* workspace, const accumulate_t<T>* uv,
                     const accumulate_t<T>* sigma, const Launch& launch) {
  using A = accumulate_t<T>;
  constexpr int kKinds = kSecond ? 3 : 1;
  GradientTable<kCapacity> table;
  for (size_t first = 0; first < layers.size(); first += kCapacity) {
    table.count = static_cast<int>(std::min<size_t>(kCapacity, layers.size() - first));
    int chunks = 0;
    for (int i = 0; i < table.count; ++i) {
      table.layers[i] = layers[first + i];
      table.chunk_end[i] = chunks += static_cast<int>((table.layers[i].numel + kChunk<T> - 1) / kChunk<T>);
    }
    if (chunks == 0) continue;
    A* const dots = workspace + int64_t{3} * chunks;
    launch(spectral_normalize_dots_kernel<T, kSecond, kCapacity>, chunks, kThreads, table, uv, workspace);
    launch(spectral_normalize_sum_kernel<A, kCapacity>, dim3(table.count, kKinds), kThreads, table,
           static_cast<const A*>(workspace), dots, chunks);
    if constexpr (kSecond) {
      launch(spectral_normalize_bwd_bwd_kernel<T, kCapacity>, chunks, kThreads, table, uv, sigma,
             static_cast<const A*>(dots));
    } else {
      launch(spectral_normalize_bwd_kernel<T, kCapacity>, chunks, kThreads, table, uv, sigma,
             static_cast<const A*>(dots));
    }
  }
}

template <class T, bool kSecond, class Launch>
void launch_gradients(const std::vector<SpectralGradient>& layers, accumulate_t<T>* workspace,
                      const accumulate_t<T>* uv, const accumulate_t<T>* sigma, const Launch& launch) {
  if (layers.size() <= kSmallGradientTable) {
    gradient_tables<T, kSecond, kSmallGradientTable>(layers, workspace, uv, sigma, launch);
  } else {
    gradient_tables<T, kSecond, kLargeGradientTable>(layers, workspace, uv, sigma, launch);
  }
}

}  // namespace gankernels::cuda

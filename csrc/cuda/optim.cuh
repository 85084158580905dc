// RMSprop and Adam over many tensors: weights, state and, when asked for, the exponential moving average of the
// weights, each read and written once.
#pragma once

#include "../optim_update.h"
#include "multi_tensor.cuh"

namespace gankernels::cuda {

// Columns of the tables. Absent tensors are null.
enum RMSpropColumn {
  kRMSpropWeight,
  kRMSpropGrad,
  kSquareAvg,
  kMomentumBuffer,
  kGradAvg,
  kRMSpropEma,
  kRMSpropColumns
};
enum AdamColumn { kAdamWeight, kAdamGrad, kExpAvg, kExpAvgSq, kMaxExpAvgSq, kAdamEma, kAdamStep, kAdamColumns };

// A learning rate that lives on the device, so that a captured graph sees it change; null when the host knows it.
struct DeviceScalar {
  const void* address;
  bool is_double;

  template <class A>
  __device__ __forceinline__ A value_or(A host) const {
    if (address == nullptr) return host;
    return is_double ? static_cast<A>(*static_cast<const double*>(address))
                     : static_cast<A>(*static_cast<const float*>(address));
  }
};

template <class T>
__device__ __forceinline__ Pack<T> load_if_present(const T* address) {
  return address == nullptr ? Pack<T>{} : load_pack(address);
}

// update(weight, grad, first, second, third, ema) for each element of the block's chunk. All tensors but grad are
// written back; first, third and ema may be absent.
template <class T, class Update>
__device__ __forceinline__ void update_chunk(int64_t count, T* weights, const T* grads, T* first, T* second, T* third,
                                             T* ema, const Update& update) {
  using A = accumulate_t<T>;
  const int thread = static_cast<int>(threadIdx.x);
  const bool aligned = is_pack_aligned(weights) && is_pack_aligned(grads) && is_pack_aligned(first) &&
                       is_pack_aligned(second) && is_pack_aligned(third) && is_pack_aligned(ema);
  const int packs = aligned ? static_cast<int>(count) / Pack<T>::size : 0;
  for (int i = thread; i < packs; i += kThreads) {
    const int at = i * Pack<T>::size;
    const auto offset = [at](T* address) { return address == nullptr ? nullptr : address + at; };
    Pack<T> w = load_pack(weights + at), s = load_pack(second + at);
    const Pack<T> g = load_pack(grads + at);
    Pack<T> f = load_if_present<T>(offset(first)), t = load_if_present<T>(offset(third)),
            e = load_if_present<T>(offset(ema));
#pragma unroll
    for (int j = 0; j < Pack<T>::size; ++j) {
      A values[5] = {A(w.values[j]), A(f.values[j]), A(s.values[j]), A(t.values[j]), A(e.values[j])};
      update(A(g.values[j]), values[0], values[1], values[2], values[3]);
      w.values[j] = static_cast<T>(values[0]);
      f.values[j] = static_cast<T>(values[1]);
      s.values[j] = static_cast<T>(values[2]);
      t.values[j] = static_cast<T>(values[3]);
      e.values[j] = static_cast<T>(update.average(values[4], A(w.values[j])));
    }
    store_pack(weights + at, w);
    store_pack(second + at, s);
    if (first != nullptr) store_pack(first + at, f);
    if (third != nullptr) store_pack(third + at, t);
    if (ema != nullptr) store_pack(ema + at, e);
  }
  for (int i = packs * Pack<T>::size + thread; i < count; i += kThreads) {
    A w = A(weights[i]), s = A(second[i]);
    A f = first != nullptr ? A(first[i]) : A(0), t = third != nullptr ? A(third[i]) : A(0);
    update(A(grads[i]), w, f, s, t);
    weights[i] = static_cast<T>(w);
    second[i] = static_cast<T>(s);
    if (first != nullptr) first[i] = static_cast<T>(f);
    if (third != nullptr) third[i] = static_cast<T>(t);
    if (ema != nullptr) ema[i] = static_cast<T>(update.average(A(ema[i]), A(weights[i])));
  }
}

template <class A>
struct RMSpropUpdate {
  RMSpropStep<A> step;
  bool with_momentum, centered;

  __device__ __forceinline__ void operator()(A grad, A& weight, A& momentum_buffer, A& square_avg, A& grad_avg) const {
    rmsprop_update(step, with_momentum, centered, grad, weight, square_avg, momentum_buffer, grad_avg);
  }
  __device__ __forceinline__ A average(A ema, A weight) const { return lerp(ema, weight, step.ema_weight); }
};

template <class A>
struct AdamUpdate {
  AdamStep<A> step;
  bool amsgrad;

  __device__ __forceinline__ void operator()(A grad, A& weight, A& exp_avg, A& exp_avg_sq, A& max_exp_avg_sq) const {
    adam_update(step, amsgrad, grad, weight, exp_avg, exp_avg_sq, max_exp_avg_sq);
  }
  __device__ __forceinline__ A average(A ema, A weight) const { return lerp(ema, weight, step.ema_weight); }
};

template <class T, int kColumns, int kCapacity>
__device__ __forceinline__ T* column(const TensorTable<kColumns, kCapacity>& table, int column, const Span& span) {
  T* base = static_cast<T*>(table.pointers[column][span.tensor]);
  return base == nullptr ? nullptr : base + span.begin;
}

template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    rmsprop_kernel(const __grid_constant__ TensorTable<kRMSpropColumns, kCapacity> table,
                   RMSpropStep<accumulate_t<T>> step, DeviceScalar lr) {
  const Span span = span_of_block<T>(table);
  T* momentum_buffer = column<T>(table, kMomentumBuffer, span);
  T* grad_avg = column<T>(table, kGradAvg, span);
  step.lr = lr.value_or(step.lr);
  const RMSpropUpdate<accumulate_t<T>> update{step, momentum_buffer != nullptr, grad_avg != nullptr};
  update_chunk<T>(span.end - span.begin, column<T>(table, kRMSpropWeight, span), column<T>(table, kRMSpropGrad, span),
                  momentum_buffer, column<T>(table, kSquareAvg, span), grad_avg, column<T>(table, kRMSpropEma, span),
                  update);
}

// With steps on the device the bias corrections are computed here, from log beta so that 1 - beta^step keeps its digits
// when beta is close to 1.
template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    adam_kernel(const __grid_constant__ TensorTable<kAdamColumns, kCapacity> table, AdamStep<accumulate_t<T>> step,
                DeviceScalar lr, accumulate_t<T> log_beta1, accumulate_t<T> log_beta2) {
  using A = accumulate_t<T>;
  const Span span = span_of_block<T>(table);
  T* max_exp_avg_sq = column<T>(table, kMaxExpAvgSq, span);
  step.lr = lr.value_or(step.lr);
  if (const float* count = static_cast<const float*>(table.pointers[kAdamStep][span.tensor])) {
    step.bias_correction1 = -std::expm1(A(*count) * log_beta1);
    step.bias_correction2_sqrt = std::sqrt(-std::expm1(A(*count) * log_beta2));
  }
  const AdamUpdate<A> update{step, max_exp_avg_sq != nullptr};
  update_chunk<T>(span.end - span.begin, column<T>(table, kAdamWeight, span), column<T>(table, kAdamGrad, span),
                  column<T>(table, kExpAvg, span), column<T>(table, kExpAvgSq, span), max_exp_avg_sq,
                  column<T>(table, kAdamEma, span), update);
}

// One block: a step is one float per tensor.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    increment_steps_kernel(const __grid_constant__ TensorTable<1, kCapacity> table) {
  for (int t = static_cast<int>(threadIdx.x); t < table.tensors; t += kThreads)
    *static_cast<float*>(table.pointers[0][t]) += 1;
}

}  // namespace gankernels::cuda

// One launch per dtype for up to 478 tensors (see multi_tensor.cuh), and one for the steps when they live on the
// device. Weights whose host steps differ, because some had no gradient now and then, take a launch of Adam per step
// count.
#include "optim.cuh"

#include <map>

#include "../optim.h"
#include "launch.h"

namespace gankernels::cuda {
namespace {

static_assert(kRMSpropColumns == kOptimizerColumns && kAdamStep == kOptimizerColumns);

DeviceScalar device_lr(const char* op, const TensorList& weights, const std::optional<Tensor>& lr) {
  check_lr_tensor(op, lr);
  if (!lr || lr->is_cpu()) return {nullptr, false};
  GK_CHECK(same_device(*lr, weights[0]), op, ": lr_tensor must be on the CPU or on the device of the weights");
  return {lr->const_data_ptr(), lr->scalar_type() == ScalarType::Double};
}

double host_lr(double lr, const std::optional<Tensor>& lr_tensor) {
  return lr_tensor && lr_tensor->is_cpu() ? host_value(*lr_tensor) : lr;
}

void increment_device_steps(const char* op, const TensorList& steps, cudaStream_t stream) {
  std::vector<TensorEntry<1>> entries;
  for (const Tensor& step : steps) entries.push_back({{step.mutable_data_ptr()}, 1});
  for_each_table<float>(entries, [&]<int kCapacity>(const TensorTable<1, kCapacity>& table, int) {
    increment_steps_kernel<kCapacity><<<1, kThreads, 0, stream>>>(table);
    check_launch(op);
  });
}

template <int kColumns>
TensorEntry<kColumns> entry_of(const OptimizerRow& row, void* step) {
  TensorEntry<kColumns> entry{{}, row.numel};
  std::copy(row.pointers.begin(), row.pointers.end(), entry.pointers.begin());
  if constexpr (kColumns > kOptimizerColumns) entry.pointers[kAdamStep] = step;
  return entry;
}

void rmsprop_(const TensorList& weights, const TensorList& grads, const TensorList& square_avgs,
              const TensorList& momentum_buffers, const TensorList& grad_avgs, const TensorList& steps,
              const TensorList& ema, double lr, std::optional<Tensor> lr_tensor, double alpha, double eps,
              double weight_decay, double momentum, bool maximize, std::optional<double> clip, double ema_decay) {
  const char* op = "rmsprop_";
  if (weights.empty()) return;
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  const cudaStream_t stream = current_stream(weights[0]);
  OptimizerRows table(op, weights);
  table.add(kRMSpropGrad, "grads", grads, OptimizerRows::read);
  table.add(kSquareAvg, "square_avgs", square_avgs, OptimizerRows::updated);
  table.add(kMomentumBuffer, "momentum_buffers", momentum_buffers, OptimizerRows::updated_if_given);
  table.add(kGradAvg, "grad_avgs", grad_avgs, OptimizerRows::updated_if_given);
  table.add(kRMSpropEma, "ema", ema, OptimizerRows::updated_if_given);
  const bool host_steps = check_steps(op, weights, steps);
  const DeviceScalar lr_on_device = device_lr(op, weights, lr_tensor);
  const RMSpropStep<double> step =
      rmsprop_step(op, host_lr(lr, lr_tensor), alpha, eps, weight_decay, momentum, maximize, clip, ema_decay);
  if (host_steps) {
    increment_host_steps(steps);
  } else {
    increment_device_steps(op, steps, stream);
  }
  for (const ScalarType dtype : kFloatingTypes) {
    std::vector<TensorEntry<kRMSpropColumns>> entries;
    for (const OptimizerRow& row : table.rows) {
      if (row.dtype == dtype) entries.push_back(entry_of<kRMSpropColumns>(row, nullptr));
    }
    if (entries.empty()) continue;
    dispatch_floating(op, dtype, [&]<class T>() {
      for_each_table<T>(entries,
                        [&]<int kCapacity>(const TensorTable<kRMSpropColumns, kCapacity>& tensors, int blocks) {
                          rmsprop_kernel<T, kCapacity>
                              <<<blocks, kThreads, 0, stream>>>(tensors, step.as<accumulate_t<T>>(), lr_on_device);
                          check_launch(op);
                        });
    });
  }
  table.write_back();
}

void adam_(const TensorList& weights, const TensorList& grads, const TensorList& exp_avgs,
           const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& steps,
           const TensorList& ema, double lr, std::optional<Tensor> lr_tensor, double beta1, double beta2, double eps,
           double weight_decay, bool decoupled_weight_decay, bool maximize, std::optional<double> clip,
           double ema_decay) {
  const char* op = "adam_";
  if (weights.empty()) return;
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  const cudaStream_t stream = current_stream(weights[0]);
  OptimizerRows table(op, weights);
  table.add(kAdamGrad, "grads", grads, OptimizerRows::read);
  table.add(kExpAvg, "exp_avgs", exp_avgs, OptimizerRows::updated);
  table.add(kExpAvgSq, "exp_avg_sqs", exp_avg_sqs, OptimizerRows::updated);
  table.add(kMaxExpAvgSq, "max_exp_avg_sqs", max_exp_avg_sqs, OptimizerRows::updated_if_given);
  table.add(kAdamEma, "ema", ema, OptimizerRows::updated_if_given);
  const bool host_steps = check_steps(op, weights, steps);
  const DeviceScalar lr_on_device = device_lr(op, weights, lr_tensor);
  const AdamStep<double> step = adam_step(op, host_lr(lr, lr_tensor), beta1, beta2, eps, weight_decay,
                                          decoupled_weight_decay, maximize, clip, ema_decay);
  // step counts on the device leave one group; 0 there stands for "read it"
  std::vector<double> counts(weights.size(), 0);
  if (host_steps) {
    counts = increment_host_steps(steps);
  } else {
    increment_device_steps(op, steps, stream);
  }
  std::map<std::pair<ScalarType, double>, std::vector<TensorEntry<kAdamColumns>>> groups;
  for (size_t i = 0; i < table.rows.size(); ++i) {
    void* const count = host_steps ? nullptr : const_cast<void*>(steps[i].const_data_ptr());
    groups[{table.rows[i].dtype, counts[i]}].push_back(entry_of<kAdamColumns>(table.rows[i], count));
  }
  for (const auto& [key, entries] : groups) {
    const AdamStep<double> numbers = with_bias_corrections(step, beta1, beta2, key.second);
    dispatch_floating(op, key.first, [&]<class T>() {
      using A = accumulate_t<T>;
      for_each_table<T>(entries, [&]<int kCapacity>(const TensorTable<kAdamColumns, kCapacity>& tensors, int blocks) {
        adam_kernel<T, kCapacity><<<blocks, kThreads, 0, stream>>>(
            tensors, numbers.as<A>(), lr_on_device, static_cast<A>(std::log(beta1)), static_cast<A>(std::log(beta2)));
        check_launch(op);
      });
    });
  }
  table.write_back();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CUDA, m) {
  m.impl("rmsprop_", TORCH_BOX(&rmsprop_));
  m.impl("adam_", TORCH_BOX(&adam_));
}

}  // namespace gankernels::cuda

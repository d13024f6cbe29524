// The update rules of the optimizers in one pass; the meaning is in vitkit/ops/updates.py.
//
// What is the same for all numbers is an argument or, where ``held`` is not null, lies on the
// device: a CUDA graph repeats its arguments, but reads memory anew.
#pragma once
#include "flat.cuh"

enum Held { LR, RATE, SHRINK, FIRST, ROOT };

__device__ __forceinline__ float chosen(float value, const float* held, Held which) {
  return held ? held[which] : value;
}

// A float32 (kind 0), float64 (1) or int64 (2) that lies on the device, or ``value`` without one.
__device__ __forceinline__ double number_at(const void* place, int kind, double value) {
  if (!place) return value;
  if (kind == 0) return *static_cast<const float*>(place);
  return kind == 1 ? *static_cast<const double*>(place) : *static_cast<const i64*>(place);
}

// Writes what is held. One thread: float64 is slow on many GPUs, and a power is long.
__global__ void hold_factors(const void* lr_at, int lr_kind, double lr, const void* step_at,
                             int step_kind, double step, double beta1, double beta2, double decay,
                             float* held) {
  lr = number_at(lr_at, lr_kind, lr);
  step = number_at(step_at, step_kind, step);
  const double first = 1 - pow(beta1, step), second = 1 - pow(beta2, step);
  held[LR] = (float)lr;
  held[RATE] = (float)(lr / first);
  held[SHRINK] = (float)(1 - lr * decay);
  held[FIRST] = (float)(1 / first);
  held[ROOT] = (float)(1 / sqrt(second));
}

// Without decay g alone, which infinite weights must not make NaN.
__device__ __forceinline__ float decayed(float g, float w, float decay) {
  return decay != 0.f ? g + decay * w : g;
}

// Without momentum ``m`` is null.
template <int V>
__global__ void __launch_bounds__(256)
    sgd_update(float* __restrict__ w, const float* __restrict__ g, float* __restrict__ m, i64 count,
               float lr, const float* __restrict__ held, float momentum, int nesterov,
               float decay) {
  const i64 at = first_number<V>(), left = count - at;
  float x[V], step[V], velocity[V];
  lr = chosen(lr, held, LR);
  load_some(w + at, left, x);
  load_some(g + at, left, step);
  for (int i = 0; i < V; i++) step[i] = decayed(step[i], x[i], decay);
  if (m) {
    load_some(m + at, left, velocity);
    for (int i = 0; i < V; i++) {
      velocity[i] = momentum * velocity[i] + step[i];
      step[i] = nesterov ? step[i] + momentum * velocity[i] : velocity[i];
    }
    store_some(velocity, m + at, left);
  }
  for (int i = 0; i < V; i++) x[i] -= lr * step[i];
  store_some(x, w + at, left);
}

struct Betas {
  float beta1, rest1, beta2, rest2;  // each beta, and what it lacks to 1
};

// The square comes first: it is infinite where it is in the reference.
__device__ __forceinline__ void add_to_moments(float g, float& m, float& v, Betas by) {
  m = by.beta1 * m + by.rest1 * g;
  v = by.beta2 * v + by.rest2 * (g * g);
}

// Adam's direction but for the factor of the first moment's bias correction.
__device__ __forceinline__ float direction(float m, float v, float root, float eps) {
  return m / (sqrtf(v) * root + eps);
}

// From weights that are multiplied by ``shrink``. Writes a copy of less precision where there is
// room for one.
template <class L, int V>
__global__ void __launch_bounds__(256)
    adam_update(float* __restrict__ w, const float* __restrict__ g, float* __restrict__ m,
                float* __restrict__ v, L* __restrict__ low, i64 count, float rate, float shrink,
                float root, const float* __restrict__ held, float beta1, float rest1, float beta2,
                float rest2, float eps, float decay) {
  const i64 at = first_number<V>(), left = count - at;
  float x[V], step[V], mean[V], square[V];
  rate = chosen(rate, held, RATE);
  shrink = chosen(shrink, held, SHRINK);
  root = chosen(root, held, ROOT);
  load_some(w + at, left, x);
  load_some(g + at, left, step);
  load_some(m + at, left, mean);
  load_some(v + at, left, square);
  for (int i = 0; i < V; i++) {
    const float gradient = decayed(step[i], x[i], decay);
    add_to_moments(gradient, mean[i], square[i], {beta1, rest1, beta2, rest2});
    x[i] = shrink * x[i] - rate * direction(mean[i], square[i], root, eps);
  }
  store_some(x, w + at, left);
  store_some(mean, m + at, left);
  store_some(square, v + at, left);
  if (low) store_some(x, low + at, left);
}

__device__ __forceinline__ float lamb_step(float w, float m, float v, float first, float root,
                                           float eps, float decay) {
  return decayed(direction(m, v, root, eps) * first, w, decay);
}

// Moves the moments, and writes for each block the sums of the squares of its weights and of its
// steps, ``sums`` (2, gridDim.x).
template <int V>
__global__ void __launch_bounds__(256)
    lamb_moments(const float* __restrict__ w, const float* __restrict__ g, float* __restrict__ m,
                 float* __restrict__ v, i64 count, float first, float root,
                 const float* __restrict__ held, float beta1, float rest1, float beta2, float rest2,
                 float eps, float decay, float* sums) {
  __shared__ float room[8];
  float x[V], gradient[V], mean[V], square[V], length = 0.f, size = 0.f;
  first = chosen(first, held, FIRST);
  root = chosen(root, held, ROOT);
  for (int round = 0; round < 4; round++) {
    const i64 at = first_number<V, 4>(round), left = count - at;
    if (left <= 0) break;
    load_some(w + at, left, x);
    load_some(g + at, left, gradient);
    load_some(m + at, left, mean);
    load_some(v + at, left, square);
    for (int i = 0; i < V; i++) {
      add_to_moments(gradient[i], mean[i], square[i], {beta1, rest1, beta2, rest2});
      const float u = lamb_step(x[i], mean[i], square[i], first, root, eps, decay);
      length += x[i] * x[i];
      size += i < left ? u * u : 0.f;  // without weights 0 / eps, which is not 0 if eps is
    }
    store_some(mean, m + at, left);
    store_some(square, v + at, left);
  }
  length = block_sum(length, room);
  size = block_sum(size, room);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = length;
    sums[gridDim.x + blockIdx.x] = size;
  }
}

// Writes how far a step goes: lr times the ratio of the two norms, 1 where either is 0. One block.
__global__ void __launch_bounds__(256)
    lamb_rate(const float* sums, int count, float lr, const float* held, float* rate) {
  __shared__ float room[8];
  float length = 0.f, size = 0.f;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    length += sums[i];
    size += sums[count + i];
  }
  length = sqrtf(block_sum(length, room));
  size = sqrtf(block_sum(size, room));
  if (threadIdx.x == 0)
    *rate = chosen(lr, held, LR) * (length > 0.f && size > 0.f ? length / size : 1.f);
}

template <int V>
__global__ void __launch_bounds__(256)
    lamb_update(float* __restrict__ w, const float* __restrict__ m, const float* __restrict__ v,
                i64 count, float first, float root, const float* __restrict__ held, float eps,
                float decay, const float* __restrict__ rate) {
  const i64 at = first_number<V>(), left = count - at;
  float x[V], mean[V], square[V];
  first = chosen(first, held, FIRST);
  root = chosen(root, held, ROOT);
  load_some(w + at, left, x);
  load_some(m + at, left, mean);
  load_some(v + at, left, square);
  for (int i = 0; i < V; i++)
    x[i] -= *rate * lamb_step(x[i], mean[i], square[i], first, root, eps, decay);
  store_some(x, w + at, left);
}

// The sign turns on the last bit of a sum, so that nothing in it may be contracted.
template <int V>
__global__ void __launch_bounds__(256)
    lion_update(float* __restrict__ w, const float* __restrict__ g, float* __restrict__ m,
                i64 count, float lr, const float* __restrict__ held, float beta1, float rest1,
                float beta2, float rest2, float decay) {
  const i64 at = first_number<V>(), left = count - at;
  float x[V], gradient[V], mean[V];
  lr = chosen(lr, held, LR);
  load_some(w + at, left, x);
  load_some(g + at, left, gradient);
  load_some(m + at, left, mean);
  for (int i = 0; i < V; i++) {
    const float mixed = __fadd_rn(__fmul_rn(beta1, mean[i]), __fmul_rn(rest1, gradient[i]));
    const float sign = mixed > 0.f ? 1.f : mixed < 0.f ? -1.f : mixed;
    x[i] -= lr * decayed(sign, x[i], decay);
    mean[i] = beta2 * mean[i] + rest2 * gradient[i];
  }
  store_some(x, w + at, left);
  store_some(mean, m + at, left);
}

template <int V>
__global__ void __launch_bounds__(256)
    ema_update(float* __restrict__ average, const float* __restrict__ w, i64 count, float rest,
               const float* __restrict__ held) {
  const i64 at = first_number<V>(), left = count - at;
  float x[V], mean[V];
  rest = chosen(rest, held, SHRINK);
  load_some(w + at, left, x);
  load_some(average + at, left, mean);
  for (int i = 0; i < V; i++) mean[i] += rest * (x[i] - mean[i]);
  store_some(mean, average + at, left);
}

// Softmax cross-entropy and its gradient; the meaning is in vitkit/ops/losses.py.
#pragma once
#include "rows.cuh"

constexpr float LOWEST = -0.499f * 3.402823466e38f;
constexpr unsigned NOT_A_NUMBER = 0x7fc00000u;  // its bits

// x less twice ``half``, by halves: their difference cannot overflow. A NaN stays one.
__device__ __forceinline__ float below(float x, float half) {
  const float difference = 0.5f * x - half;
  return 2.f * (difference < LOWEST ? LOWEST : difference);
}

// A sample's class, of whole numbers of that many bytes; negative for those with a sign.
__device__ __forceinline__ i64 label_at(const void* labels, int bytes, int row) {
  switch (bytes) {
    case -1: return static_cast<const signed char*>(labels)[row];
    case 1: return static_cast<const unsigned char*>(labels)[row];
    case -2: return static_cast<const short*>(labels)[row];
    case 2: return static_cast<const unsigned short*>(labels)[row];
    case -4: return static_cast<const int*>(labels)[row];
    case 4: return static_cast<const unsigned*>(labels)[row];
    default: return static_cast<const i64*>(labels)[row];
  }
}

// Writes the gradient of each sample's share of the mean, and that share. Labels are classes, whose
// ``bytes`` are those of label_at, or where these are 0 a distribution in float32. A class that
// there is not makes all NaN.
template <int THREADS, int V>
__global__ void __launch_bounds__(threads_for<THREADS>)
    cross_entropy(const float* __restrict__ logits, const void* __restrict__ labels, int bytes,
                  float kept, float even, float share, float* __restrict__ losses,
                  float* __restrict__ dlogits, int rows, int classes) {
  __shared__ float room[32];
  const int row = row_of_thread<THREADS>(), first = threadIdx.x % THREADS * V;
  if (row >= rows) return;
  const i64 at = (i64)row * classes, label = bytes ? label_at(labels, bytes, row) : 0;
  const float* soft = static_cast<const float*>(labels) + at;
  const bool missing = label < 0 || label >= classes;
  float v[V], t[V], half = float_of(LEAST), total = 0.f, loss = 0.f;
  for (int c = first; c < classes; c += THREADS * V) {
    load(logits + at + c, v);
    for (int i = 0; i < V; i++) half = larger(half, 0.5f * v[i]);
  }
  half = row_largest<THREADS>(half, room);
  for (int c = first; c < classes; c += THREADS * V) {
    load(logits + at + c, v);
    for (int i = 0; i < V; i++) total += expf(below(v[i], half));
  }
  total = row_sum<THREADS>(total, room);
  const float log_total = logf(total);
  for (int c = first; c < classes; c += THREADS * V) {
    load(logits + at + c, v);
    if (bytes)
      for (int i = 0; i < V; i++) t[i] = missing ? float_of(NOT_A_NUMBER) : c + i == label;
    else
      load(soft + c, t);
    for (int i = 0; i < V; i++) {
      const float target = t[i] * kept + even, z = below(v[i], half);
      loss += (log_total - z) * share * target;  // of the largest number, a share is a number
      v[i] = (expf(z) / total - target) * share;
    }
    store(v, dlogits + at + c);
  }
  loss = row_sum<THREADS>(loss, room);
  if (first == 0) losses[row] = loss;
}

// Writes the sum of some numbers; one block.
__global__ void __launch_bounds__(1024)
    sum_of_losses(const float* __restrict__ losses, int count, float* loss) {
  __shared__ float room[32];
  float sum = 0.f;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += losses[i];
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) *loss = sum;
}

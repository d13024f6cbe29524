// Softmax of rows; the meaning is in vitkit/ops/softmax.py.
//
// A row is read once for each of its three uses: after the first time it comes from the cache.
#pragma once
#include "rows.cuh"

template <int THREADS, int V>
__global__ void __launch_bounds__(threads_for<THREADS>)
    softmax_forward(const float* __restrict__ x, float* __restrict__ y, int rows, int width) {
  __shared__ float room[32];
  const int row = row_of_thread<THREADS>(), first = threadIdx.x % THREADS * V;
  if (row >= rows) return;
  x += (i64)row * width;
  y += (i64)row * width;
  float v[V], largest = float_of(LEAST), total = 0.f;
  for (int c = first; c < width; c += THREADS * V) {
    load(x + c, v);
    for (int i = 0; i < V; i++) largest = larger(largest, v[i]);
  }
  largest = row_largest<THREADS>(largest, room);
  for (int c = first; c < width; c += THREADS * V) {
    load(x + c, v);
    for (int i = 0; i < V; i++) total += expf(v[i] - largest);
  }
  const float scale = 1.f / row_sum<THREADS>(total, room);
  for (int c = first; c < width; c += THREADS * V) {
    load(x + c, v);
    for (int i = 0; i < V; i++) v[i] = expf(v[i] - largest) * scale;
    store(v, y + c);
  }
}

template <int THREADS, int V>
__global__ void __launch_bounds__(threads_for<THREADS>)
    softmax_backward(const float* __restrict__ dy, const float* __restrict__ y,
                     float* __restrict__ dx, int rows, int width) {
  __shared__ float room[32];
  const int row = row_of_thread<THREADS>(), first = threadIdx.x % THREADS * V;
  if (row >= rows) return;
  const i64 at = (i64)row * width;
  float d[V], v[V], along = 0.f;
  for (int c = first; c < width; c += THREADS * V) {
    load(dy + at + c, d);
    load(y + at + c, v);
    for (int i = 0; i < V; i++) along += d[i] * v[i];
  }
  along = row_sum<THREADS>(along, room);
  for (int c = first; c < width; c += THREADS * V) {
    load(dy + at + c, d);
    load(y + at + c, v);
    for (int i = 0; i < V; i++) d[i] = v[i] * (d[i] - along);
    store(d, dx + at + c);
  }
}

// Layer normalization of rows, with float32 statistics; the meaning is in vitkit/ops/layer_norm.py.
//
// A warp takes a row and reads it once for each of the sums it needs: after the first time it comes
// from the cache. V numbers are read at once.
#pragma once
#include "common.cuh"

template <class X, class Y, int V>
__global__ void __launch_bounds__(128)
    layer_norm_forward(const X* __restrict__ x, const float* __restrict__ weight,
                       const float* __restrict__ bias, float eps, Y* __restrict__ y, float* mean,
                       float* rstd, int rows, int width) {
  const int lane = threadIdx.x & 31, row = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (row >= rows) return;
  x += (i64)row * width;
  y += (i64)row * width;
  float sum = 0.f, squares = 0.f, v[V], w[V], b[V];
  for (int c = lane * V; c < width; c += 32 * V) {
    load(x + c, v);
    for (int i = 0; i < V; i++) sum += v[i];
  }
  const float m = warp_sum(sum) / width;
  for (int c = lane * V; c < width; c += 32 * V) {
    load(x + c, v);
    for (int i = 0; i < V; i++) squares += (v[i] - m) * (v[i] - m);
  }
  const float r = rsqrtf(warp_sum(squares) / width + eps);
  for (int c = lane * V; c < width; c += 32 * V) {
    load(x + c, v);
    load(weight + c, w);
    load(bias + c, b);
    for (int i = 0; i < V; i++) v[i] = (v[i] - m) * r * w[i] + b[i];
    store(v, y + c);
  }
  if (lane == 0) {
    mean[row] = m;
    rstd[row] = r;
  }
}

// The same y, of what forward found: for backward, where keeping it would cost more.
template <class X, class Y, int V>
__global__ void __launch_bounds__(128)
    layer_norm_again(const X* __restrict__ x, const float* __restrict__ weight,
                     const float* __restrict__ bias, const float* __restrict__ mean,
                     const float* __restrict__ rstd, Y* __restrict__ y, int rows, int width) {
  const int lane = threadIdx.x & 31, row = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (row >= rows) return;
  const i64 at = (i64)row * width;
  const float m = mean[row], r = rstd[row];
  float v[V], w[V], b[V];
  for (int c = lane * V; c < width; c += 32 * V) {
    load(x + at + c, v);
    load(weight + c, w);
    load(bias + c, b);
    for (int i = 0; i < V; i++) v[i] = (v[i] - m) * r * w[i] + b[i];
    store(v, y + at + c);
  }
}

// Writes dx = residual + LN'(dy), where there is a residual, and for each block the sums over its
// rows of dy * x_hat and of dy, ``parts`` (gridDim.x, 2, width). Shared memory: 8 * width floats.
// Six blocks at once: told so, the compiler keeps all in registers.
template <class G, class X, int V>
__global__ void __launch_bounds__(128, 6)
    layer_norm_backward(const G* __restrict__ dy, const X* __restrict__ x,
                        const float* __restrict__ weight, const float* __restrict__ mean,
                        const float* __restrict__ rstd, const X* __restrict__ residual,
                        X* __restrict__ dx, float* __restrict__ parts, int rows, int width) {
  DYNAMIC_SHARED(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float* dweight = reinterpret_cast<float*>(memory) + warp * 2 * width;
  float* dbias = dweight + width;
  for (int c = lane; c < 2 * width; c += 32) dweight[c] = 0.f;
  __syncwarp();
  for (int row = blockIdx.x * 4 + warp; row < rows; row += gridDim.x * 4) {
    const i64 at = (i64)row * width;
    const float m = mean[row], r = rstd[row];
    float sum = 0.f, along = 0.f, d[V], v[V], w[V], total[V];
    for (int c = lane * V; c < width; c += 32 * V) {
      load(dy + at + c, d);
      load(x + at + c, v);
      load(weight + c, w);
      for (int i = 0; i < V; i++) {
        v[i] = (v[i] - m) * r;
        sum += d[i] * w[i];
        along += d[i] * w[i] * v[i];
      }
      load(dweight + c, total);
      for (int i = 0; i < V; i++) total[i] += d[i] * v[i];
      store(total, dweight + c);
      load(dbias + c, total);
      for (int i = 0; i < V; i++) total[i] += d[i];
      store(total, dbias + c);
    }
    sum = warp_sum(sum) / width;
    along = warp_sum(along) / width;
    for (int c = lane * V; c < width; c += 32 * V) {
      load(dy + at + c, d);
      load(x + at + c, v);
      load(weight + c, w);
      for (int i = 0; i < V; i++) d[i] = r * (d[i] * w[i] - sum - (v[i] - m) * r * along);
      if (residual) {
        load(residual + at + c, v);
        for (int i = 0; i < V; i++) d[i] += v[i];
      }
      store(d, dx + at + c);
    }
  }
  __syncthreads();
  const float* all = reinterpret_cast<const float*>(memory);
  for (int c = threadIdx.x; c < 2 * width; c += 128) {
    float total = 0.f;
    for (int i = 0; i < 4; i++) total += all[i * 2 * width + c];
    parts[(i64)blockIdx.x * 2 * width + c] = total;
  }
}

// Numbers of another precision, alone or on the way to a product.
#pragma once
#include "flat.cuh"

template <class X, class Y, int V>
__global__ void __launch_bounds__(256)
    cast(const X* __restrict__ x, Y* __restrict__ y, i64 count) {
  float v[4][V];  // all are asked for before the first is waited for
#pragma unroll
  for (int round = 0; round < 4; round++) {
    const i64 at = first_number<V, 4>(round);
    load_some(x + at, count - at, v[round]);
  }
#pragma unroll
  for (int round = 0; round < 4; round++) {
    const i64 at = first_number<V, 4>(round);
    store_some(v[round], y + at, count - at);
  }
}

// Writes dy times the gain of each sample, if there is one, and for each block the sums over its
// rows of what was written, ``parts`` (gridDim.y, width). A warp takes 32 V columns of a row.
template <class X, class Y, int V>
__global__ void __launch_bounds__(256)
    gained_cast(const X* __restrict__ dy, const float* __restrict__ gain, Y* __restrict__ y,
                float* __restrict__ parts, int rows, int tokens, int width) {
  __shared__ float sums[8][32 * V];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first = blockIdx.x * 32 * V, column = first + lane * V;
  float v[V], total[V] = {};
  if (column < width)
#pragma unroll 4
    for (int row = blockIdx.y * 8 + warp; row < rows; row += gridDim.y * 8) {
      const i64 at = (i64)row * width + column;
      const float factor = gain ? gain[row / tokens] : 1.f;
      load(dy + at, v);
      Vector<Y, V> rounded;
      for (int i = 0; i < V; i++) {
        put(v[i] * factor, rounded.at[i]);
        total[i] += to_float(rounded.at[i]);
      }
      *reinterpret_cast<Vector<Y, V>*>(y + at) = rounded;
    }
  for (int i = 0; i < V; i++) sums[warp][lane * V + i] = total[i];
  __syncthreads();
  const int mine = threadIdx.x;
  if (mine >= 32 * V || first + mine >= width) return;
  float sum = 0.f;
  for (int i = 0; i < 8; i++) sum += sums[i][mine];
  parts[(i64)blockIdx.y * width + first + mine] = sum;
}

// Writes residual + gain * branch, the gain that of each sample of ``each`` numbers.
template <class X, int V>
__global__ void __launch_bounds__(256)
    add_gained(const X* __restrict__ residual, const float* __restrict__ branch,
               const float* __restrict__ gain, X* __restrict__ y, int across, int each) {
  const int sample = blockIdx.x / across;
  const int at = (blockIdx.x % across * 256 + threadIdx.x) * V;
  if (at >= each) return;
  const i64 first = (i64)sample * each + at;
  const float factor = gain[sample];
  float v[V], w[V];
  load(residual + first, v);
  load(branch + first, w);
  for (int i = 0; i < V; i++) v[i] += factor * w[i];
  store(v, y + first);
}

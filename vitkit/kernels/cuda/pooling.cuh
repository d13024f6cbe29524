// Pooling and its gradients; the meaning is in vitkit/ops/pooling.py.
#pragma once
#include "common.cuh"

// Eight warps take 32 V columns of an image, every eighth token each; ``across`` blocks an image.
template <int V>
__global__ void __launch_bounds__(256)
    pool_mean(const float* __restrict__ x, float* __restrict__ y, int tokens, int width,
              int across) {
  __shared__ float sums[8][32 * V];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first = blockIdx.x % across * 32 * V, column = first + lane * V;
  const i64 image = blockIdx.x / across;
  float v[V], total[V] = {};
  if (column < width)
#pragma unroll 4
    for (int token = warp; token < tokens; token += 8) {
      load(x + (image * tokens + token) * width + column, v);
      for (int i = 0; i < V; i++) total[i] += v[i];
    }
  for (int i = 0; i < V; i++) sums[warp][lane * V + i] = total[i];
  __syncthreads();
  const int mine = threadIdx.x;
  if (mine >= 32 * V || first + mine >= width) return;
  float sum = 0.f;
  for (int i = 0; i < 8; i++) sum += sums[i][mine];
  y[image * width + first + mine] = sum / tokens;
}

// Writes dy times ``share`` to every token or, where that is 0, dy to the first and 0 to the others.
// An image's tokens are ``count`` numbers, which ``across`` blocks take.
template <int V>
__global__ void __launch_bounds__(256)
    spread(const float* __restrict__ dy, float share, float* __restrict__ dx, int width, int count,
           int across) {
  const int at = (blockIdx.x % across * blockDim.x + threadIdx.x) * V;
  if (at >= count) return;
  const i64 image = blockIdx.x / across;
  float v[V] = {};
  if (share != 0.f || at < width) {  // no product with 0, which NaN and infinity survive
    load(dy + image * width + at % width, v);
    for (int i = 0; i < V; i++) v[i] *= share != 0.f ? share : 1.f;
  }
  store(v, dx + image * count + at);
}

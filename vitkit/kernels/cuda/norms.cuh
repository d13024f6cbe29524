// The norm of many arrays taken as one vector, and what it limits.
#pragma once
#include "flat.cuh"

// Writes the sum of the squares of each block's numbers: 16 are added one after another, the rest
// as a tree, so that float32 loses no more than in a pairwise sum.
template <int V>
__global__ void __launch_bounds__(256)
    sum_of_squares(const float* __restrict__ x, i64 count, float* sums) {
  __shared__ float room[8];
  float total[V] = {}, v[V];
#pragma unroll 4
  for (int round = 0; round < 16; round++) {
    const i64 at = first_number<V, 16>(round);
    load_some(x + at, count - at, v);
    for (int i = 0; i < V; i++) total[i] += v[i] * v[i];
  }
  for (int step = 1; step < V; step *= 2)
    for (int i = 0; i + step < V; i += 2 * step) total[i] += total[i + step];
  const float sum = block_sum(total[0], room);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Writes the root of the sum of all sums; one block.
__global__ void __launch_bounds__(1024) norm_of_sums(const float* sums, int count, float* norm) {
  __shared__ float room[32];
  float sum = 0.f;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) *norm = sqrtf(sum);
}

// Multiplies by min(1, limit / (norm + 1e-6)). A NaN stays one.
template <int V>
__global__ void __launch_bounds__(256)
    scale_by_clip(float* __restrict__ x, i64 count, const float* __restrict__ norm, float limit) {
  const float scale = limit / (*norm + 1e-6f);
  if (scale >= 1.f) return;  // numbers times 1 are what lies there
  const i64 at = first_number<V>(), left = count - at;
  float v[V];
  load_some(x + at, left, v);
  for (int i = 0; i < V; i++) v[i] *= scale;
  store_some(v, x + at, left);
}

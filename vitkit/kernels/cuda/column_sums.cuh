// Sums over the rows of a matrix, such as the gradient of a bias.
#pragma once
#include "common.cuh"

// Eight warps of a block take 32 V columns, and every (8 * gridDim.y)-th row; block (x, y) writes
// to row y of ``out``, or adds to it. One block down, on what several have left, ends the sum.
template <class T, int V>
__global__ void __launch_bounds__(256)
    column_sums(const T* __restrict__ x, float* out, int rows, int width, int adds) {
  constexpr int AHEAD = 4;  // rows that are asked for before the first is waited for
  __shared__ float sums[8][32 * V];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, step = gridDim.y * 8;
  const int first = blockIdx.x * 32 * V, column = first + lane * V;
  float total[V] = {};
  if (column < width)
    for (int row = blockIdx.y * 8 + warp; row < rows; row += AHEAD * step) {
      Vector<T, V> v[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        if (row + k * step >= rows) break;
        v[k] = *reinterpret_cast<const Vector<T, V>*>(x + (i64)(row + k * step) * width + column);
      }
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        if (row + k * step >= rows) break;
#pragma unroll
        for (int i = 0; i < V; i++) total[i] += to_float(v[k].at[i]);
      }
    }
#pragma unroll
  for (int i = 0; i < V; i++) sums[warp][lane * V + i] = total[i];
  __syncthreads();
  const int mine = threadIdx.x;
  if (mine >= 32 * V || first + mine >= width) return;
  float* to = out + (i64)blockIdx.y * width + first + mine;
  float sum = adds ? *to : 0.f;
  for (int i = 0; i < 8; i++) sum += sums[i][mine];
  *to = sum;
}

// Sums over the rows of a matrix, such as the gradient of a bias.
#pragma once
#include "common.cuh"

// Eight warps of a block take 32 columns, and every (8 * gridDim.y)-th row; block (x, y) writes to
// row y of ``out``, or adds to it. One block down, on what several have left, ends the sum.
template <class T>
__global__ void __launch_bounds__(256)
    column_sums(const T* __restrict__ x, float* out, int rows, int width, int adds) {
  __shared__ float sums[8][33];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = blockIdx.x * 32 + lane;
  float sum = 0.f;
  if (column < width)
    for (int row = blockIdx.y * 8 + warp; row < rows; row += gridDim.y * 8)
      sum += to_float(x[(i64)row * width + column]);
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp || column >= width) return;
  float total = adds ? out[(i64)blockIdx.y * width + column] : 0.f;
  for (int i = 0; i < 8; i++) total += sums[i][lane];
  out[(i64)blockIdx.y * width + column] = total;
}

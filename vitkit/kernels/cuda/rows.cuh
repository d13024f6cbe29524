// Rows that are read as one: each by a warp, four a block, or where they are long by a whole block.
#pragma once
#include "common.cuh"

constexpr int WARP_ROWS = 4;  // of a block, where a warp takes a row

// How many threads a block has where THREADS share a row: 32, or all.
template <int THREADS>
constexpr int threads_for = THREADS == 32 ? 32 * WARP_ROWS : THREADS;

template <int THREADS>
__device__ __forceinline__ int row_of_thread() {
  return THREADS == 32 ? blockIdx.x * WARP_ROWS + threadIdx.x / 32 : blockIdx.x;
}

// The sum over the threads of a row, for each of them; ``room`` holds a number a warp.
template <int THREADS>
__device__ __forceinline__ float row_sum(float x, float* room) {
  return THREADS == 32 ? warp_sum(x) : block_sum(x, room);
}

constexpr unsigned LEAST = 0xff800000u;  // the bits of minus infinity

template <int THREADS>
__device__ __forceinline__ float row_largest(float x, float* room) {
  x = warp_largest(x);
  if (THREADS == 32) return x;
  const int lane = threadIdx.x & 31;
  if (lane == 0) room[threadIdx.x >> 5] = x;
  __syncthreads();
  return warp_largest(lane < THREADS / 32 ? room[lane] : float_of(LEAST));
}

// Arrays without gaps, of any length: a thread takes V numbers, the last one what is left.
#pragma once
#include "common.cuh"

// Where a thread begins in one of the rounds that its block makes over neighbouring numbers.
template <int V, int ROUNDS = 1>
__device__ __forceinline__ i64 first_number(int round = 0) {
  return (((i64)blockIdx.x * ROUNDS + round) * blockDim.x + threadIdx.x) * V;
}

// Reads V numbers, or the ``left`` ones where there are fewer; the others are 0.
template <int V, class T>
__device__ __forceinline__ void load_some(const T* from, i64 left, float (&x)[V]) {
  if (left >= V) return load(from, x);
#pragma unroll
  for (int i = 0; i < V; i++) x[i] = i < left ? to_float(from[i]) : 0.f;
}

template <int V, class T>
__device__ __forceinline__ void store_some(const float (&x)[V], T* to, i64 left) {
  if (left >= V) return store(x, to);
#pragma unroll
  for (int i = 0; i < V; i++)
    if (i < left) put(x[i], to[i]);
}

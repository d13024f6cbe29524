// Class token and positions; the meaning is in vitkit/ops/positions.py.
#pragma once
#include "common.cuh"

// Writes token and patches plus positions. An image's tokens are ``count`` numbers, which
// ``across`` blocks take, and the first ``lead`` of them are the class token's.
template <int V>
__global__ void __launch_bounds__(256)
    embed_positions(const float* __restrict__ patches, const float* __restrict__ token,
                    const float* __restrict__ positions, float* __restrict__ tokens, int lead,
                    int count, int across) {
  const int at = (blockIdx.x % across * blockDim.x + threadIdx.x) * V;
  if (at >= count) return;
  const i64 image = blockIdx.x / across;
  float v[V], p[V];
  load(at < lead ? token + at : patches + image * (count - lead) + (at - lead), v);
  load(positions + at, p);
  for (int i = 0; i < V; i++) v[i] += p[i];
  store(v, tokens + image * count + at);
}

// Dropout and drop path by the masks that the host would draw; the meaning is in
// vitkit/ops/dropout.py.
#pragma once
#include "flat.cuh"
#include "philox.cuh"

constexpr int DRAWN = 8;  // numbers that a block of Philox makes

// Writes x, or 1 where it is null, times its mask and the gain. NumPy's float32 between 0 and 1 are
// the upper 24 bits of 32, the low half of a word first; it counts before it draws, so the first
// block has number 1. The step is where ``step_at`` points, unless that is null.
template <int V>
__global__ void __launch_bounds__(256)
    drop_numbers(const float* __restrict__ x, u64 key0, u64 key1, const i64* step_at, u64 step,
                 u64 draws, u64 last, unsigned least, float gain, float* __restrict__ y,
                 i64 count) {
  const i64 at = first_number<DRAWN>();
  if (at >= count) return;
  if (step_at) step = *step_at;
  const Words words = philox(at / DRAWN + 1, step, draws, last, key0, key1);
#pragma unroll
  for (int k = 0; k < DRAWN; k += V) {
    const i64 left = count - at - k;
    float v[V];
    if (x) load_some(x + at + k, left, v);
#pragma unroll
    for (int i = 0; i < V; i++) {
      const unsigned bits = (unsigned)(words.at[(k + i) / 2] >> (32 * ((k + i) % 2)));
      v[i] = (x ? v[i] : 1.f) * (bits >> 8 >= least ? gain : 0.f);  // 0 times NaN is NaN
    }
    store_some(v, y + at + k, left);
  }
}

// Multiplies each sample by its factor; ``across`` blocks take one.
template <int V>
__global__ void __launch_bounds__(256)
    scale_samples(const float* __restrict__ x, const float* __restrict__ factors,
                  float* __restrict__ y, i64 width, int across) {
  const int sample = blockIdx.x / across;
  const i64 column = ((i64)(blockIdx.x % across) * blockDim.x + threadIdx.x) * V;
  if (column >= width) return;
  const float factor = factors[sample];
  float v[V];
  load(x + sample * width + column, v);
  for (int i = 0; i < V; i++) v[i] *= factor;
  store(v, y + sample * width + column);
}

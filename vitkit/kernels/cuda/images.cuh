// Pixels to numbers, x * factor + shift; the meaning is in vitkit/ops/images.py.
//
// Factors and shifts are arguments, four at a time: arrays would have to be brought to the device,
// which a CUDA graph cannot record.
#pragma once
#include "patches.cuh"

__device__ __forceinline__ float one_of(int i, float a, float b, float c, float d) {
  return i < 2 ? (i ? b : a) : (i == 2 ? c : d);
}

// Channels from ``first`` on; ``across`` blocks take one of an image.
template <int V>
__global__ void __launch_bounds__(256)
    normalize_images(const unsigned char* __restrict__ x, float* __restrict__ y, int channels,
                     int pixels, int across, int first, float factor0, float factor1,
                     float factor2, float factor3, float shift0, float shift1, float shift2,
                     float shift3) {
  const int pixel = (blockIdx.x % across * blockDim.x + threadIdx.x) * V;
  if (pixel >= pixels) return;
  const int image = blockIdx.x / across, i = blockIdx.y;
  const float factor = one_of(i, factor0, factor1, factor2, factor3);
  const float shift = one_of(i, shift0, shift1, shift2, shift3);
  const i64 at = ((i64)image * channels + first + i) * pixels + pixel;
  float v[V];
  load(x + at, v);
  for (int k = 0; k < V; k++) v[k] = v[k] * factor + shift;
  store(v, y + at);
}

// The same pixels, as patches: those of four channels from ``first`` on.
template <class Y, int V>
__global__ void __launch_bounds__(256)
    patchify_pixels(const unsigned char* __restrict__ x, Y* __restrict__ y, int channels, int rows,
                    int columns, int down, int across, int blocks, int first, float factor0,
                    float factor1, float factor2, float factor3, float shift0, float shift1,
                    float shift2, float shift3) {
  const int in_patches = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  const int count = channels * rows * columns * down * across;
  if (in_patches >= count) return;
  const Place place = place_in_image({channels, rows, columns, down, across}, in_patches);
  const int i = place.channel - first;
  if (i < 0 || i >= 4) return;
  const float factor = one_of(i, factor0, factor1, factor2, factor3);
  const float shift = one_of(i, shift0, shift1, shift2, shift3);
  const i64 image = (i64)(blockIdx.x / blocks) * count;
  float v[V];
  load(x + (image + place.at) * V, v);
  for (int k = 0; k < V; k++) v[k] = v[k] * factor + shift;
  store(v, y + (image + in_patches) * V);
}

// Images to patches and back; the meaning is in vitkit/ops/patches.py.
#pragma once
#include "common.cuh"

// An image of (channels, rows * down, columns * across), and its patches in reading order.
struct Cut {
  int channels, rows, columns, down, across;
};

struct Place {
  int channel, at;
};

// Where the number that is at ``at`` among an image's patches lies in the image.
__device__ __forceinline__ Place place_in_image(const Cut& cut, unsigned at) {
  const unsigned a = at % cut.across;
  at /= cut.across;
  const unsigned d = at % cut.down;
  at /= cut.down;
  const unsigned channel = at % cut.channels;
  at /= cut.channels;
  const unsigned column = at % cut.columns, row = at / cut.columns;
  const unsigned line = (channel * cut.rows + row) * cut.down + d;
  return {(int)channel, (int)((line * cut.columns + column) * cut.across + a)};
}

// Moves V numbers to the patches, or BACK from them; ``blocks`` take one image. ``across`` is the
// width of a patch by V.
template <int V, int BACK>
__global__ void __launch_bounds__(256)
    move_patches(const float* __restrict__ from, float* __restrict__ to, int channels, int rows,
                 int columns, int down, int across, int blocks) {
  const int in_patches = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  const int count = channels * rows * columns * down * across;
  if (in_patches >= count) return;
  const Place place = place_in_image({channels, rows, columns, down, across}, in_patches);
  const i64 image = (i64)(blockIdx.x / blocks) * count;
  float v[V];
  load(from + (image + (BACK ? in_patches : place.at)) * V, v);
  store(v, to + (image + (BACK ? place.at : in_patches)) * V);
}

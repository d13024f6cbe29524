// Fused attention on tensor cores; the meaning is in vitkit/ops/attention.py.
//
// A warp owns queries of a head and goes over tiles of its keys and values, which the block brings
// to shared memory, the next tile while it computes with one; no (N, N) array leaves the registers.
//
// At N = 65 and 197 a whole head would fit. It comes in two tiles or four all the same: products
// begin when the first is there, three blocks fit on a multiprocessor and hide each other's waits,
// and N may be anything; what that costs is a barrier a tile. Keys are taken 16 at a time, so that
// 197 tokens are as much work as 208. Softmax is therefore online, but see ``soften``.
#pragma once
#include "head_tiles.cuh"

// What a lane knows of a row of scores. ``total`` sums 2^(score * step + shift).
struct Row {
  float shift, top, total;
};

constexpr float LN_2 = 0.693147181f, ROOM = 8.f;
constexpr float NO_SHIFT = 3e38f;  // too much for any score, but not for minus infinity

// Lets shifts follow the largest scores that any of a row's four lanes has seen.
template <int M, int W>
__device__ __forceinline__ void raise(Row (&rows)[M][2], float (&sum)[M][W][4], float step) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      Row& row = rows[m][h];
      float top = row.top, factor = 1.f;
      for (int lane = 1; lane <= 2; lane <<= 1) top = larger(top, __shfl_xor_sync(WARP, top, lane));
      if (fmaf(top, step, row.shift) > ROOM) {
        const float shift = -top * step;
        factor = power_of_two(shift - row.shift);
        row.shift = shift;
      }
      row.total *= factor;
#pragma unroll
      for (int c = 0; c < W; c++) {
        sum[m][c][2 * h] *= factor;
        sum[m][c][2 * h + 1] *= factor;
      }
    }
}

// Turns scores into powers of two, and adds these to the total of their row.
//
// A shift changes only when a power would be more than 2^ROOM, for as many digits of somewhat
// larger powers are right: after the first few keys hardly any step has to exchange largest scores
// between lanes and to multiply sums. A row does not depend on what others of its warp do.
template <int M, int W>
__device__ __forceinline__ void soften(float (&s)[M][2][4], Row (&rows)[M][2],
                                       float (&sum)[M][W][4], float step) {
  bool above = false;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      Row& row = rows[m][h];
#pragma unroll
      for (int i = 0; i < 4; i++) row.top = larger(row.top, s[m][i / 2][2 * h + i % 2]);
      above |= fmaf(row.top, step, row.shift) > ROOM;
    }
  if (__any_sync(WARP, above)) raise(rows, sum, step);
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < 8; i++) {
      Row& row = rows[m][i / 2 % 2];
      const float e = power_of_two(fmaf(s[m][i / 4][i % 4], step, row.shift));
      row.total += e;
      s[m][i / 4][i % 4] = e;
    }
}

// Adds up what the four lanes of each row know of it, and writes it down; ``share`` is 1 / total.
template <int M>
__device__ __forceinline__ void finish(Row (&rows)[M][2], float (&share)[M][2], float* largest,
                                       float* log_total, int there, float scale, float step) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      Row& row = rows[m][h];
      for (int other = 1; other <= 2; other <<= 1) {
        row.total += __shfl_xor_sync(WARP, row.total, other);
        row.top = larger(row.top, __shfl_xor_sync(WARP, row.top, other));
      }
      share[m][h] = 1.f / row.total;
      const int at = m * 16 + h * 8 + lane / 4;
      if (lane % 4 == 0 && at < there) {
        largest[at] = row.top * scale;
        // How far the shift is from the largest score, what rounding it lost included, is added.
        log_total[at] = logf(row.total) - fmaf(row.top, step, row.shift) * LN_2;
      }
    }
}

// Two squares of rows a warp where registers allow it: each square of keys and values that is read
// from shared memory then serves two products, and reading is what limits one.
template <int D>
struct Forward {
  static constexpr int SQUARES = D <= 80 ? 2 : 1, ROWS = 16 * SQUARES, KEYS = D <= 96 ? 64 : 32;
  static constexpr int BLOCKS = D == 32 ? 4 : D == 80 ? 2 : 3;  // of a multiprocessor
};

// A warp owns ROWS queries. Shared memory: its queries, later its results; two tiles of keys and
// values. ``step`` is scale * log2(e).
template <class T, int D>
__global__ void __launch_bounds__(128, Forward<D>::BLOCKS)
    attention_forward(const T* __restrict__ qkv, T* __restrict__ y, float* __restrict__ largest,
                      float* __restrict__ log_total, int tokens, int heads, int parts, float scale,
                      float step) {
  using F = Forward<D>;
  constexpr int M = F::SQUARES, KEYS = F::KEYS, STEP = D + 8;
  DYNAMIC_SHARED(memory);
  const Place place(block_number(), heads, parts);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int dim = heads * D, first = (place.part * warps + warp) * F::ROWS;
  const int there = min(F::ROWS, max(0, tokens - first));
  T* own = reinterpret_cast<T*>(memory) + warp * F::ROWS * STEP;
  T* tiles = reinterpret_cast<T*>(memory) + warps * F::ROWS * STEP;
  const T* q = qkv + (i64)place.image * tokens * 3 * dim + place.head * D;

  const auto copy_tile = [&](int tile) {
    const int from = tile * KEYS, left = tokens - from, rows = min(KEYS, (left + 15) / 16 * 16);
    T* to = tiles + tile % 2 * 2 * KEYS * STEP;
    const T* k = q + dim + (i64)from * 3 * dim;
    copy_rows<T, D>(to, k, 3 * dim, rows, left, threadIdx.x, blockDim.x);
    copy_rows<T, D>(to + KEYS * STEP, k + dim, 3 * dim, rows, left, threadIdx.x, blockDim.x);
  };
  const i64 start = min(first, tokens - 1);
  copy_rows<T, D>(own, q + start * 3 * dim, 3 * dim, F::ROWS, there, lane, 32);
  copy_tile(0);
  copies_arrived();
  __syncthreads();

  unsigned queries[M][D / 16][4], p[M][4];
  float sum[M][D / 8][4] = {}, s[M][2][4];
  Row rows[M][2];
#pragma unroll
  for (int m = 0; m < M; m++) {
    for (int h = 0; h < 2; h++) rows[m][h] = {NO_SHIFT, -infinity(), 0.f};
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_left<STEP>(own + m * 16 * STEP + k * 16, queries[m][k]);
  }
  for (int tile = 0; tile * KEYS < tokens; tile++) {
    const int left = tokens - tile * KEYS;
    if (left > KEYS) copy_tile(tile + 1);
    const T* keys = tiles + tile % 2 * 2 * KEYS * STEP;
    if (there)
#pragma unroll 1
      for (int i = 0; i < min(left, KEYS); i += 16) {
        scores<T, D, M, true>(queries, own, keys + i * STEP, s);
        if (i + 16 > left) hide(s, left - i);
        soften(s, rows, sum, step);
#pragma unroll
        for (int m = 0; m < M; m++) as_operand<T>(s[m], p[m]);
        gather<T, D, M>(p, keys + (KEYS + i) * STEP, sum);
      }
    copies_arrived();
    __syncthreads();
  }
  if (!there) return;
  const Place here(block_number(), heads, parts);
  const i64 stats = ((i64)here.image * heads + here.head) * tokens + first;
  float share[M][2];
  finish(rows, share, largest + stats, log_total + stats, there, scale, step);
#pragma unroll
  for (int m = 0; m < M; m++)
    put_rows<T, D>(sum[m], share[m][0], share[m][1], own + m * 16 * STEP);
  __syncwarp();
  write_rows<T, D>(own, y + ((i64)here.image * tokens + first) * dim + here.head * D, dim, there);
}

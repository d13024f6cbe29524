// The backward pass of attention on tensor cores; the meaning is in vitkit/ops/attention.py.
//
// As forwards, a warp owns rows and goes over tiles of others. Scores are computed twice, for the
// gradients of keys and values by warps that own keys, and for those of queries by warps that own
// queries: 7 products for 5, and in return no warp adds to what another one writes.
#pragma once
#include "head_tiles.cuh"

constexpr float LOG2_E = 1.44269504f;

// For each row, as its eight threads find it: what turns a score into a probability,
// 2^(score * step + shift) * share, and delta, the sum of dy * y. ``root`` is 1 / scale.
template <class T, int D>
__device__ __forceinline__ void describe(const T* dy, const T* y, i64 y_step, const float* largest,
                                         const float* log_total, float root, float step, int rows,
                                         int there, int thread, int threads, float* shift,
                                         float* share, float* delta) {
  for (int row = thread / 8; row < rows; row += threads / 8) {
    const bool is_there = row < there;
    float sum = 0.f, d[8], v[8];
    if (is_there)
      for (int c = thread % 8 * 8; c < D; c += 64) {
        load(dy + row * (D + 8) + c, d);
        load(y + row * y_step + c, v);
        for (int i = 0; i < 8; i++) sum += d[i] * v[i];
      }
    for (int lane = 4; lane; lane >>= 1) sum += __shfl_xor_sync(WARP, sum, lane);
    if (thread % 8) continue;
    const float top = is_there ? largest[row] * root : 0.f, whole = -top * step;
    shift[row] = whole;
    // The share also makes up for what rounding the shift lost, as much as where scores are huge.
    share[row] = is_there ? power_of_two(-log_total[row] * LOG2_E - fmaf(top, step, whole)) : 0.f;
    delta[row] = sum;
  }
}

// What the two rows or columns of a lane are described by.
struct Described {
  float shift[2], share[2], delta[2];
};

// Turns scores into probabilities, and dp into the gradients of scores over ``scale``.
template <bool OF_KEYS>
__device__ __forceinline__ void slopes(float (&s)[2][4], float (&dp)[2][4], const Described& rows,
                                       const float* columns, int stats, float step) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    Described by = rows;
    if (OF_KEYS) {
      const float* first = columns + j * 8 + threadIdx.x % 4 * 2;
      load(first, by.shift);
      load(first + stats, by.share);
      load(first + 2 * stats, by.delta);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int at = OF_KEYS ? i % 2 : i / 2;
      s[j][i] = power_of_two(fmaf(s[j][i], step, by.shift[at])) * by.share[at];
      dp[j][i] = s[j][i] * (dp[j][i] - by.delta[at]);
    }
  }
}

// A warp owns 16 rows, which are left operands, in registers where these allow it; of 32 the sums
// alone would fill those. Tiles are shorter where rows are long, so that two blocks fit.
template <int D>
struct Backward {
  static constexpr bool HELD = D <= 96;
  static constexpr int WARPS = 4, ROWS = D <= 64 ? 64 : 32;  // of a block, at most, and of a tile
  static constexpr int BLOCKS = D == 32 ? 4 : D == 64 ? 3 : 2, STATS = 64;
};

// The two halves of the backward pass have one form. Own rows are keys and values, tiles queries
// and dy; or the other way around. With a and b the first and the second of each,
//   p = 2^(a_own a_tile^T * step + shift) * share,   ds = p * (b_own b_tile^T - delta),
//   da_own = scale * ds a_tile,   and for values   db_own = p b_tile.
template <class T, int D, bool OF_KEYS>
struct Sides {
  using B = Backward<D>;
  static constexpr int STEP = D + 8, ROWS = B::ROWS;
  const T *a_own, *b_own, *a_tile, *b_tile, *y;
  const float *largest, *log_total;
  T *own, *tiles, *results;
  float *stats, *raw;
  int tokens, dim, first, there;

  __device__ __forceinline__ Sides(const T* dy, const T* qkv, const T* mixed, const float* tops,
                                   const float* logs, unsigned char* memory, int tokens, int heads,
                                   const Place& place)
      : tokens(tokens), dim(heads * D) {
    const int warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const i64 rows = (i64)place.image * tokens;
    const T* q = qkv + rows * 3 * dim + place.head * D;
    const T* d = dy + rows * dim + place.head * D;
    first = (place.part * warps + warp) * 16;
    there = min(16, max(0, tokens - first));
    y = mixed + rows * dim + place.head * D;
    largest = tops + rows * heads + (i64)place.head * tokens;
    log_total = logs + rows * heads + (i64)place.head * tokens;
    a_tile = OF_KEYS ? q : q + dim;
    b_tile = OF_KEYS ? d : q + 2 * dim;
    const i64 at = min(first, tokens - 1);
    a_own = (OF_KEYS ? q + dim : q) + at * 3 * dim;
    b_own = OF_KEYS ? q + 2 * dim + at * 3 * dim : d + at * dim;
    own = reinterpret_cast<T*>(memory) + warp * 32 * STEP;
    tiles = reinterpret_cast<T*>(memory) + warps * 32 * STEP;
    results = tiles + 4 * ROWS * STEP;
    stats = reinterpret_cast<float*>(results + ROWS * STEP);
    raw = stats + 3 * B::STATS;
  }

  __device__ __forceinline__ void copy_own() const {
    const int lane = threadIdx.x & 31, step = OF_KEYS ? 3 * dim : dim;
    copy_rows<T, D>(own, a_own, 3 * dim, 16, there, lane, 32);
    copy_rows<T, D>(own + 16 * STEP, b_own, step, 16, there, lane, 32);
  }

  __device__ __forceinline__ void copy_tile(int tile) const {
    const i64 from = tile * ROWS;
    const int left = tokens - tile * ROWS, rows = min(ROWS, (left + 15) / 16 * 16);
    const int me = threadIdx.x, all = blockDim.x, step = OF_KEYS ? dim : 3 * dim;
    T* to = tiles + tile % 2 * 2 * ROWS * STEP;
    copy_rows<T, D>(to, a_tile + from * 3 * dim, 3 * dim, rows, left, me, all);
    copy_rows<T, D>(to + ROWS * STEP, b_tile + from * step, step, rows, left, me, all);
    if (!OF_KEYS) return;
    copy_rows<T, D>(results, y + from * dim, dim, rows, left, me, all);
    for (int i = me; i < rows; i += all) {
      copy_to_shared<4>(raw + i, largest + (i < left ? from + i : 0), i < left);
      copy_to_shared<4>(raw + ROWS + i, log_total + (i < left ? from + i : 0), i < left);
    }
  }

  // The queries of a tile are described for the block.
  __device__ __forceinline__ void describe_tile(int tile, float root, float step) const {
    const int left = tokens - tile * ROWS, rows = min(ROWS, (left + 15) / 16 * 16);
    const T* d = tiles + (tile % 2 * 2 + 1) * ROWS * STEP;
    describe<T, D>(d, results, STEP, raw, raw + ROWS, root, step, rows, left, threadIdx.x,
                   blockDim.x, stats, stats + B::STATS, stats + 2 * B::STATS);
  }

  // Own queries are described for the lanes that hold their rows.
  __device__ __forceinline__ Described describe_own(float root, float step) const {
    const int lane = threadIdx.x & 31;
    const i64 at = min(first, tokens - 1);
    float* to = stats + (threadIdx.x >> 5) * 16;
    describe<T, D>(own + 16 * STEP, y + at * dim, dim, largest + at, log_total + at, root, step, 16,
                   there, lane, 32, to, to + B::STATS, to + 2 * B::STATS);
    __syncwarp();
    Described rows;
    for (int h = 0; h < 2; h++) {
      const float* row = to + lane / 4 + 8 * h;
      rows.shift[h] = row[0];
      rows.share[h] = row[B::STATS];
      rows.delta[h] = row[2 * B::STATS];
    }
    return rows;
  }
};

// Writes the gradients of the keys and values, or of the queries, that this warp owns.
template <class T, int D, bool OF_KEYS>
__device__ __forceinline__ void gradients(const Sides<T, D, OF_KEYS>& at, T* dqkv, float scale,
                                          float root, float step) {
  using B = Backward<D>;
  constexpr int ROWS = B::ROWS, STEP = D + 8, FRAGMENTS = B::HELD ? D / 16 : 1;
  at.copy_own();
  at.copy_tile(0);
  copies_arrived();
  __syncthreads();

  unsigned a[1][FRAGMENTS][4], b[1][FRAGMENTS][4], p[1][4], ds[1][4];
  float da[1][D / 8][4] = {}, db[1][D / 8][4] = {}, s[1][2][4], dp[1][2][4];
  Described rows = {};
  if (!OF_KEYS) rows = at.describe_own(root, step);
  if (B::HELD)
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++) {
      load_left<STEP>(at.own + k * 16, a[0][k]);
      load_left<STEP>(at.own + 16 * STEP + k * 16, b[0][k]);
    }
  for (int tile = 0; tile * ROWS < at.tokens; tile++) {
    const int left = at.tokens - tile * ROWS;
    if (OF_KEYS) {
      at.describe_tile(tile, root, step);
      __syncthreads();
    }
    if (left > ROWS) at.copy_tile(tile + 1);
    const T* first = at.tiles + tile % 2 * 2 * ROWS * STEP;
    if (at.there)
#pragma unroll 1
      for (int i = 0; i < min(left, ROWS); i += 16) {
        const T *a_tile = first + i * STEP, *b_tile = a_tile + ROWS * STEP;
        scores<T, D, 1, B::HELD>(a, at.own, a_tile, s);
        scores<T, D, 1, B::HELD>(b, at.own + 16 * STEP, b_tile, dp);
        if (i + 16 > left) hide(s, left - i);
        slopes<OF_KEYS>(s[0], dp[0], rows, at.stats + i, B::STATS, step);
        as_operand<T>(s[0], p[0]);
        as_operand<T>(dp[0], ds[0]);
        if (OF_KEYS) gather<T, D, 1>(p, b_tile, db);
        gather<T, D, 1>(ds, a_tile, da);
      }
    copies_arrived();
    __syncthreads();
  }
  if (!at.there) return;
  put_rows<T, D>(da[0], scale, scale, at.own);
  if (OF_KEYS) put_rows<T, D>(db[0], 1.f, 1.f, at.own + 16 * STEP);
  __syncwarp();
  write_rows<T, D>(at.own, dqkv, 3 * at.dim, at.there);
  if (OF_KEYS) write_rows<T, D>(at.own + 16 * STEP, dqkv + at.dim, 3 * at.dim, at.there);
}

// Blocks of keys and blocks of queries take turns, so that what both read comes from DRAM once.
// Nothing is added to what another block writes: bits do not depend on which comes first.
// Shared memory: own rows, two tiles, a tile of y, five numbers a row.
template <class T, int D>
__global__ void __launch_bounds__(32 * Backward<D>::WARPS, Backward<D>::BLOCKS)
    attention_backward(const T* __restrict__ dy, const T* __restrict__ qkv,
                       const T* __restrict__ y, const float* __restrict__ largest,
                       const float* __restrict__ log_total, T* __restrict__ dqkv, int tokens,
                       int heads, int parts, float scale, float step) {
  DYNAMIC_SHARED(memory);
  const Place place(blockIdx.x / 2, heads, parts);
  const float root = 1.f / scale;
  const i64 image = (i64)place.image * tokens * 3 * heads * D + place.head * D;
  if (blockIdx.x % 2 == 0) {
    const Sides<T, D, true> keys(dy, qkv, y, largest, log_total, memory, tokens, heads, place);
    gradients(keys, dqkv + image + (i64)(keys.first * 3 + 1) * heads * D, scale, root, step);
  } else {
    const Sides<T, D, false> queries(dy, qkv, y, largest, log_total, memory, tokens, heads, place);
    gradients(queries, dqkv + image + (i64)queries.first * 3 * heads * D, scale, root, step);
  }
}

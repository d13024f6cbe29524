// Rows of a head in tiles: to and from shared memory, and the products of attention on them.
//
// Rows in shared memory are D + 8 numbers apart (see load_left). A left operand, 16 M rows, is
// spread over the lanes of a warp; of results, lane i holds rows i / 4 and i / 4 + 8 of every 16,
// columns 2 (i % 4) and the next of every 8.
#pragma once
#include "tensor.cuh"

__device__ __forceinline__ float infinity() { return float_of(0x7f800000u); }

// The number of the block, asked for anew each time, so that no register has to hold it, or what
// follows from it, from the beginning of a kernel to the end.
__device__ __forceinline__ int block_number() {
#ifdef VITKIT_ON_CPU
  return blockIdx.x;
#else
  int number;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
  return number;
#endif
}

// A head of an image, and the rows of it that a block owns.
struct Place {
  int image, head, part;
  __device__ Place(int index, int heads, int parts)
      : image(index / parts / heads), head(index / parts % heads), part(index % parts) {}
};

struct __align__(16) Chunk {  // what a thread reads and writes at once
  unsigned words[4];
};

// Begins to copy rows of D numbers; those from ``there`` on are zeros.
template <class T, int D>
__device__ __forceinline__ void copy_rows(T* to, const T* from, unsigned step, unsigned rows,
                                          int there, unsigned thread, unsigned threads) {
#pragma unroll 1
  for (unsigned i = thread; i < rows * (D / 8); i += threads) {
    const unsigned row = i / (D / 8), c = i % (D / 8) * 8;
    const bool is_there = (int)row < there;
    copy_to_shared<16>(to + row * (D + 8) + c, from + (is_there ? row * step + c : 0u), is_there);
  }
}

// Writes 16 rows of sums, the upper and the lower eight times a factor, to shared memory.
template <class T, int D>
__device__ __forceinline__ void put_rows(const float (&sum)[D / 8][4], float upper, float lower,
                                         T* to) {
  const int lane = threadIdx.x & 31;
  to += lane / 4 * (D + 8) + lane % 4 * 2;
#pragma unroll
  for (int c = 0; c < D / 8; c++) {
    *reinterpret_cast<unsigned*>(to + c * 8) = pack<T>(sum[c][0] * upper, sum[c][1] * upper);
    *reinterpret_cast<unsigned*>(to + 8 * (D + 8) + c * 8) =
        pack<T>(sum[c][2] * lower, sum[c][3] * lower);
  }
}

// Copies rows from shared memory, as one warp.
template <class T, int D>
__device__ __forceinline__ void write_rows(const T* from, T* to, unsigned step, unsigned rows) {
  for (unsigned i = threadIdx.x & 31; i < rows * (D / 8); i += 32) {
    const unsigned row = i / (D / 8), c = i % (D / 8) * 8;
    *reinterpret_cast<Chunk*>(to + row * step + c) =
        *reinterpret_cast<const Chunk*>(from + row * (D + 8) + c);
  }
}

// s (16 M x 16) = own (16 M x D) rows^T (D x 16). Own rows come from registers, if HELD, or memory.
template <class T, int D, int M, bool HELD>
__device__ __forceinline__ void scores(const unsigned (&held)[M][HELD ? D / 16 : 1][4],
                                       const T* own, const T* rows, float (&s)[M][2][4]) {
#pragma unroll
  for (int m = 0; m < M; m++)
    for (int i = 0; i < 8; i++) s[m][i / 4][i % 4] = 0.f;
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    unsigned right[4];
    load_columns<D + 8>(rows + k * 16, right);
#pragma unroll
    for (int m = 0; m < M; m++) {
      unsigned left[4];
      if (!HELD) load_left<D + 8>(own + m * 16 * (D + 8) + k * 16, left);
#pragma unroll
      for (int i = 0; i < 4 && HELD; i++) left[i] = held[m][HELD ? k : 0][i];
      multiply<T>(left, right[0], right[1], s[m][0]);
      multiply<T>(left, right[2], right[3], s[m][1]);
    }
  }
}

// sum (16 M x D) += p (16 M x 16) rows (16 x D).
template <class T, int D, int M>
__device__ __forceinline__ void gather(const unsigned (&p)[M][4], const T* rows,
                                       float (&sum)[M][D / 8][4]) {
#pragma unroll
  for (int c = 0; c < D / 16; c++) {
    unsigned right[4];
    load_right<D + 8>(rows + c * 16, right);
#pragma unroll
    for (int m = 0; m < M; m++) {
      multiply<T>(p[m], right[0], right[1], sum[m][2 * c]);
      multiply<T>(p[m], right[2], right[3], sum[m][2 * c + 1]);
    }
  }
}

// Rounds a 16 x 16 result of two products to the left operand of the next: its lanes are the same.
template <class T>
__device__ __forceinline__ void as_operand(const float (&s)[2][4], unsigned (&a)[4]) {
  a[0] = pack<T>(s[0][0], s[0][1]);
  a[1] = pack<T>(s[0][2], s[0][3]);
  a[2] = pack<T>(s[1][0], s[1][1]);
  a[3] = pack<T>(s[1][2], s[1][3]);
}

// Makes nothing of the scores of columns that are not there: all but the first ``left``.
template <int M>
__device__ __forceinline__ void hide(float (&s)[M][2][4], int left) {
  const int first = threadIdx.x % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i / 4 * 8 + first + i % 2 >= left) s[m][i / 4][i % 4] = -infinity();
}


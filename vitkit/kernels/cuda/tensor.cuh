// Products of small matrices by tensor cores, and how what they multiply gets there.
//
// For bfloat16 and float16 on compute capability 8.0 and newer. Which numbers of a matrix a lane
// holds is said in the PTX ISA: "Matrix Fragments for mma.m16n8k16 with floating point type" and
// "ldmatrix". On the CPU the lanes of a warp show each other what they hold and compute what the
// instruction would give them.
//
// A left operand, 16 x 16 numbers, is four registers a lane, one for each quadrant: upper left,
// lower left, upper right, lower right. Lane i holds columns 2 (i % 4) and the next of row i / 4.
#pragma once
#include "common.cuh"

#ifdef VITKIT_ON_CPU

template <class T>
float number_of(unsigned pair, int which) {
  T x;
  x.bits = (unsigned short)(pair >> 16 * which);
  return to_float(x);
}

struct Operands {
  unsigned a[4], b[2];
};

template <class T>
void multiply(const unsigned (&a)[4], unsigned b0, unsigned b1, float (&sum)[4]) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const Operands* lanes = cuda_on_cpu::from_all_lanes(mine);
  const int lane = cuda_on_cpu::thread_number() & 31;
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; k++) {
      const unsigned left = lanes[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
      const unsigned right = lanes[column * 4 + k % 8 / 2].b[k / 8];
      sum[i] += number_of<T>(left, k % 2) * number_of<T>(right, k % 2);
    }
  }
}

template <bool TURNED>
void load_quadrants(const void* row, unsigned (&quadrants)[4]) {
  if ((size_t)row % 16) cuda_on_cpu::problem = "ldmatrix from an address that is not aligned";
  const auto rows = cuda_on_cpu::from_all_lanes((const unsigned short*)row);
  const int lane = cuda_on_cpu::thread_number() & 31, line = lane / 4, pair = lane % 4 * 2;
  for (int i = 0; i < 4; i++) {
    const unsigned short* const* part = rows + 8 * i;
    const unsigned first = TURNED ? part[pair][line] : part[line][pair];
    const unsigned second = TURNED ? part[pair + 1][line] : part[line][pair + 1];
    quadrants[i] = first | second << 16;
  }
}

template <class T>
unsigned pack(float first, float second) {
  T low, high;
  put(first, low);
  put(second, high);
  return low.bits | (unsigned)high.bits << 16;
}

inline float power_of_two(float x) { return exp2f(x); }

template <int BYTES>
void copy_to_shared(void* to, const void* from, bool there) {
  cuda_on_cpu::copy_async(to, from, BYTES, there ? BYTES : 0);
}

inline void copies_arrived() { cuda_on_cpu::wait_for_copies(); }

#else

// sum (16 x 8) += a (16 x 16) b (16 x 8); b0 and b1 are the upper and lower eight rows of b, of
// which lane i holds rows 2 (i % 4) and the next of column i / 4. Lane i holds in ``sum`` what it
// would of the left quadrants of a square, a number in each.
template <class T>
__device__ __forceinline__ void multiply(const unsigned (&a)[4], unsigned b0, unsigned b1,
                                         float (&sum)[4]);

template <>
__device__ __forceinline__ void multiply<bf16>(const unsigned (&a)[4], unsigned b0, unsigned b1,
                                               float (&sum)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply<f16>(const unsigned (&a)[4], unsigned b0, unsigned b1,
                                              float (&sum)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned shared_address(const void* place) {
  return (unsigned)__cvta_generic_to_shared(place);
}

// Lane i says where row i % 8 of quadrant i / 8 is, in shared memory, and gets its share of each,
// of the transposed ones if TURNED.
template <bool TURNED>
__device__ __forceinline__ void load_quadrants(const void* row, unsigned (&quadrants)[4]) {
  if (TURNED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(quadrants[0]), "=r"(quadrants[1]), "=r"(quadrants[2]), "=r"(quadrants[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(quadrants[0]), "=r"(quadrants[1]), "=r"(quadrants[2]), "=r"(quadrants[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Two numbers, rounded to the nearest, ties to even; the first in the lower half.
template <class T>
__device__ __forceinline__ unsigned pack(float first, float second);

template <>
__device__ __forceinline__ unsigned pack<bf16>(float first, float second) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

template <>
__device__ __forceinline__ unsigned pack<f16>(float first, float second) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

// 2^x. What is less than 2^-126 is 0: beside a sum of powers near 1 float32 cannot hold it, and
// exp2f takes three more instructions to keep it.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Begins to copy 16 or 4 bytes, aligned, from global to shared memory, or to write zeros there.
template <int BYTES>
__device__ __forceinline__ void copy_to_shared(void* to, const void* from, bool there) {
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(there ? 4 : 0)
                 : "memory");
}

// Waits for what this thread has begun to copy; others know of it after a barrier.
__device__ __forceinline__ void copies_arrived() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

#endif

// Reads a left operand, a square whose rows are STEP numbers apart in shared memory. STEP / 8 has
// to be odd: then eight rows of eight numbers lie in different banks.
template <int STEP, class T>
__device__ __forceinline__ void load_left(const T* corner, unsigned (&square)[4]) {
  const int lane = threadIdx.x & 31;
  load_quadrants<false>(corner + (lane & 15) * STEP + (lane >> 4) * 8, square);
}

// Reads two right operands, b0 and b1 of each: the columns of the first are the upper eight rows of
// a square, those of the second the lower ones.
template <int STEP, class T>
__device__ __forceinline__ void load_columns(const T* corner, unsigned (&square)[4]) {
  const int lane = threadIdx.x & 31;
  load_quadrants<false>(corner + ((lane & 7) + (lane >> 4) * 8) * STEP + (lane & 8), square);
}

// Reads two right operands, b0 and b1 of each: the left and the right eight columns of a square.
template <int STEP, class T>
__device__ __forceinline__ void load_right(const T* corner, unsigned (&square)[4]) {
  const int lane = threadIdx.x & 31;
  load_quadrants<true>(corner + (lane & 15) * STEP + (lane >> 4) * 8, square);
}

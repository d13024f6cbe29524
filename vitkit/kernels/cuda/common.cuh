// What every kernel here uses: the types of stored numbers, vectors of them, and sums over a warp.
//
// Needs no header of the CUDA toolkit, so that it compiles where there is none. With
// VITKIT_ON_CPU, which vitkit/testing/cuda_on_cpu.h defines, the same kernels are plain C++.
#pragma once

typedef long long i64;

struct bf16 {
  unsigned short bits;
};

struct f16 {
  unsigned short bits;
};

#ifdef VITKIT_ON_CPU
#define DYNAMIC_SHARED(name) unsigned char* name = cuda_on_cpu::dynamic_shared()
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

// The same names in C++; on the GPU they are instructions.
__device__ __forceinline__ unsigned bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float float_of(unsigned bits) { return __uint_as_float(bits); }

__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ __forceinline__ unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return float_of((unsigned)x.bits << 16); }
__device__ __forceinline__ float to_float(f16 x) { return half_to_float(x.bits); }

__device__ __forceinline__ void put(float x, float& to) { to = x; }

// Rounds to the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ void put(float x, bf16& to) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const unsigned u = bits_of(x);
  const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
  to.bits = (unsigned short)((is_nan ? u | 0x400000u : u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
}

__device__ __forceinline__ void put(float x, f16& to) { to.bits = float_to_half(x); }

// N numbers that are read or written by one instruction; N times their size is at most 16 bytes.
template <class T, int N>
struct __align__(sizeof(T) * N) Vector {
  T at[N];
};

template <int N, class T>
__device__ __forceinline__ void load(const T* from, float (&x)[N]) {
  const Vector<T, N> v = *reinterpret_cast<const Vector<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = to_float(v.at[i]);
}

template <int N, class T>
__device__ __forceinline__ void store(const float (&x)[N], T* to) {
  Vector<T, N> v;
#pragma unroll
  for (int i = 0; i < N; i++) put(x[i], v.at[i]);
  *reinterpret_cast<Vector<T, N>*>(to) = v;
}

constexpr unsigned WARP = 0xffffffffu;  // every lane of it

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane; lane >>= 1) x += __shfl_xor_sync(WARP, x, lane);
  return x;
}

// fmaxf drops a NaN; here one stays.
__device__ __forceinline__ float larger(float x, float y) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(y));
  return x;
#else
  return x > y || x != x ? x : y;
#endif
}

__device__ __forceinline__ float warp_largest(float x) {
#pragma unroll
  for (int lane = 16; lane; lane >>= 1) x = larger(x, __shfl_xor_sync(WARP, x, lane));
  return x;
}

// The sum over all threads of a block, for each of them; ``room`` holds a number a warp.
__device__ __forceinline__ float block_sum(float x, float* room) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  x = warp_sum(x);
  __syncthreads();  // the last sum has been read by all
  if (lane == 0) room[warp] = x;
  __syncthreads();
  return warp_sum(lane < (int)blockDim.x / 32 ? room[lane] : 0.f);
}

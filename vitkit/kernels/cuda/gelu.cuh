// Both forms of GELU and their derivatives; the meaning is in vitkit/ops/gelu.py.
//
// Each takes one exponential and one quotient. Where numbers of 16 bits are stored these are fast
// ones, whose error is far below what rounding loses.
#pragma once
#include "flat.cuh"

struct Both {
  float value, slope;
};

#ifdef VITKIT_ON_CPU
inline float fast_exp2(float x) { return exp2f(x); }
inline float fast_reciprocal(float x) { return 1.f / x; }
#else
// One instruction each; __expf and __fdividef take several for numbers below 1e-38.
__device__ __forceinline__ float fast_exp2(float x) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}

__device__ __forceinline__ float fast_reciprocal(float x) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
#endif

// e^(factor x); the factor is a constant.
template <bool FAST>
__device__ __forceinline__ float exponential(float factor, float x) {
  return FAST ? fast_exp2(factor * 1.44269504f * x) : expf(factor * x);
}

template <bool FAST>
__device__ __forceinline__ float reciprocal(float x) {
  return FAST ? fast_reciprocal(x) : 1.f / x;
}

// By the error function. With t = 1 / (1 + 0.44 a / sqrt 2), Phi(-a) = t Q(t) e^(-a^2 / 2): the
// minimax fit of vitkit/kernels/cpu/_math.py, which keeps the tail's digits, where 1 + erf has none.
// The error is at most 1.6e-8 in Phi, and 5e-6 of the tail itself.
struct Erf {
  template <bool FAST>
  static __device__ __forceinline__ Both of(float x) {
    const float t = reciprocal<FAST>(1.f + 0.44f * 0.707106781f * fabsf(x));
    const float e = exponential<FAST>(-0.5f, x * x);
    float q = 0.031672531771f;
    q = q * t - 0.122928197124f;
    q = q * t + 0.121868477722f;
    q = q * t + 0.012510645932f;
    q = q * t + 0.097354902287f;
    q = q * t + 0.111265096790f;
    q = q * t + 0.124134246791f;
    q = q * t + 0.124122311602f;
    const float tail = q * t * e, cdf = x < 0.f ? tail : 1.f - tail;
    const float inside = fminf(fmaxf(x, -40.f), 40.f);  // infinity times 0 is NaN
    return {x * cdf, cdf + inside * e * 0.398942280f};
  }
};

// By the hyperbolic tangent: (1 + tanh u) / 2 = sigmoid(2 u). Beyond 9 the derivative is 0 or 1 in
// float32; within, e^-2u does not overflow.
struct Tanh {
  template <bool FAST>
  static __device__ __forceinline__ Both of(float x) {
    constexpr float LINEAR = 2 * 0.797884561f, CUBE = LINEAR * 0.044715f;
    const float inside = x < -9.f ? -9.f : x > 9.f ? 9.f : x, square = inside * inside;  // NaN too
    const float e = exponential<FAST>(-1.f, inside * (LINEAR + CUBE * square));
    const float s = x <= -9.f ? 0.f : reciprocal<FAST>(1.f + e);  // or it would show in a huge x
    return {x * s, s + inside * (e * s * s) * (LINEAR + 3.f * CUBE * square)};
  }
};

// Writes f(h) and, where ``slope`` is not null, f'(h).
template <class T, class FORM, int V>
__global__ void __launch_bounds__(256)
    activate(const T* __restrict__ h, T* __restrict__ hidden, T* __restrict__ slope, i64 count) {
  constexpr bool FAST = sizeof(T) == 2;
  float x[2][V], s[V];  // all are asked for before the first is waited for
#pragma unroll
  for (int round = 0; round < 2; round++) {
    const i64 at = first_number<V, 2>(round);
    load_some(h + at, count - at, x[round]);
  }
#pragma unroll
  for (int round = 0; round < 2; round++) {
    const i64 at = first_number<V, 2>(round);
#pragma unroll
    for (int i = 0; i < V; i++) {
      const Both both = FORM::template of<FAST>(x[round][i]);
      x[round][i] = both.value;
      s[i] = both.slope;
    }
    store_some(x[round], hidden + at, count - at);
    if (slope) store_some(s, slope + at, count - at);
  }
}

template <class FORM, int V>
__global__ void __launch_bounds__(256)
    gelu_backward(const float* __restrict__ dy, const float* __restrict__ x,
                  float* __restrict__ dx, i64 count) {
  const i64 at = first_number<V>(), left = count - at;
  float d[V], v[V];
  load_some(dy + at, left, d);
  load_some(x + at, left, v);
#pragma unroll
  for (int i = 0; i < V; i++) d[i] *= FORM::template of<false>(v[i]).slope;
  store_some(d, dx + at, left);
}

// Multiplies dh by the slope where it lies, and writes for each block the sums over its rows of
// what was stored, ``parts`` (gridDim.y, width). A warp takes 32 V columns of a row.
template <class T, int V>
__global__ void __launch_bounds__(256)
    through_activation(T* __restrict__ dh, const T* __restrict__ slope, float* __restrict__ parts,
                       int rows, int width) {
  constexpr int AHEAD = 4;  // rows that are asked for before the first is waited for
  __shared__ float sums[8][32 * V];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, step = gridDim.y * 8;
  const int first = blockIdx.x * 32 * V, column = first + lane * V;
  float total[V] = {};
  if (column < width)
    for (int row = blockIdx.y * 8 + warp; row < rows; row += AHEAD * step) {
      Vector<T, V> d[AHEAD], s[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        const i64 at = (i64)(row + k * step) * width + column;
        if (row + k * step >= rows) break;
        d[k] = *reinterpret_cast<const Vector<T, V>*>(dh + at);
        s[k] = *reinterpret_cast<const Vector<T, V>*>(slope + at);
      }
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        if (row + k * step >= rows) break;
        for (int i = 0; i < V; i++) {
          put(to_float(d[k].at[i]) * to_float(s[k].at[i]), d[k].at[i]);
          total[i] += to_float(d[k].at[i]);
        }
        *reinterpret_cast<Vector<T, V>*>(dh + (i64)(row + k * step) * width + column) = d[k];
      }
    }
  for (int i = 0; i < V; i++) sums[warp][lane * V + i] = total[i];
  __syncthreads();
  const int mine = threadIdx.x;
  if (mine >= 32 * V || first + mine >= width) return;
  float sum = 0.f;
  for (int i = 0; i < 8; i++) sum += sums[i][mine];
  parts[(i64)blockIdx.y * width + first + mine] = sum;
}

// The bits of NumPy's Philox: a block of four words from a key and a counter, in ten rounds (Salmon
// et al., 2011, "Parallel random numbers: as easy as 1, 2, 3").
#pragma once
#include "common.cuh"

typedef unsigned long long u64;

struct Words {
  u64 at[4];
};

__device__ __forceinline__ Words philox(u64 c0, u64 c1, u64 c2, u64 c3, u64 k0, u64 k1) {
  constexpr u64 FACTOR0 = 0xD2E7470EE14C6C93ull, FACTOR1 = 0xCA5A826395121157ull;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u64 high0 = __umul64hi(FACTOR0, c0), low0 = FACTOR0 * c0;
    const u64 high1 = __umul64hi(FACTOR1, c2), low1 = FACTOR1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B97F4A7C15ull;
    k1 += 0xBB67AE8584CAA73Bull;
  }
  return {{c0, c1, c2, c3}};
}

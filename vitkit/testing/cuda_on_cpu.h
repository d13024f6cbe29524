// Runs CUDA kernels as plain C++ on the CPU, to check what they compute where there is no GPU.
//
// Each thread of a block is a fiber; blocks run one after another. A shuffle is a meeting of the
// lanes of a warp, __syncthreads one of the whole block, and between meetings the fibers run in an
// order that the caller chooses: a missing barrier gives wrong numbers in one order or another. A
// meeting that not all can come to is reported and not waited for. Inline PTX, wgmma and TMA are
// not understood: kernels give them an #ifdef path, for which from_all_lanes and copy_async are
// here. Compile with -fno-strict-aliasing.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#define VITKIT_ON_CPU
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __constant__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

namespace cuda_on_cpu {

struct Index {
  unsigned x, y, z;
};

enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Copy {
  void* to;
  const void* from;
  size_t bytes, there;
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  State state;
  Index thread;
  unsigned shown;  // how often it has been to from_all_lanes
  std::vector<Copy> copies;
};

static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static std::vector<std::vector<int>> warps;  // in the order in which they run, and their lanes
static int current;
static Index block_index, block_size, grid_size;
static unsigned long long exchange[1024];
static unsigned char on_show[2][32][32 * 64];  // by turns; for each warp, 64 bytes a lane
static bool copies_are_late, warps_run_ahead;
static std::function<void()> kernel;
static std::vector<unsigned char> dynamic_memory;
static const char* problem;
constexpr size_t GUARD = 256, ALIGNMENT = 128;  // bytes behind dynamic shared memory, and before
constexpr unsigned char UNTOUCHED = 0xff;       // NaN, as float of any width

inline unsigned char* dynamic_shared() {
  const size_t at = (size_t)dynamic_memory.data();
  return dynamic_memory.data() + (ALIGNMENT - at % ALIGNMENT) % ALIGNMENT;
}

inline void wait(State at) {
  fibers[current].state = at;
  swapcontext(&fibers[current].context, &scheduler);
}

inline void run_fiber() {
  kernel();
  if (!fibers[current].copies.empty()) problem = "a copy to shared memory that nobody waits for";
  wait(DONE);
}

inline void start(Fiber& fiber, Index thread) {
  fiber.stack.resize(64 << 10);
  fiber.state = READY;
  fiber.thread = thread;
  fiber.shown = 0;
  fiber.copies.clear();
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, (void (*)())run_fiber, 0);
}

// Let those who have all come to a meeting go on; returns whether any could.
inline bool let_go(int first, int count, State at) {
  int there = 0, left = 0;
  for (int i = first; i < first + count; i++) {
    there += fibers[i].state == at;
    left += fibers[i].state == DONE;
  }
  // The full mask names every lane; a block's barrier counts the threads that have not returned.
  if (!there || there + (at == AT_BLOCK ? left : 0) < count) return false;
  for (int i = first; i < first + count; i++)
    if (fibers[i].state == at) fibers[i].state = READY;
  return true;
}

inline void run_block(Index block, size_t shared) {
  block_index = block;
  const int n = block_size.x * block_size.y * block_size.z;
  std::fill(dynamic_memory.begin(), dynamic_memory.end(), UNTOUCHED);
  for (unsigned i = 0; i < (unsigned)n; i++)
    start(fibers[i], {i % block_size.x, (i / block_size.x) % block_size.y,
                      i / (block_size.x * block_size.y)});
  bool met;
  for (;;) {
    bool any = false, all_done = true;
    for (const std::vector<int>& lanes : warps)
      do {
        for (int i : lanes)
          if (fibers[i].state == READY) {
            current = i;
            swapcontext(&scheduler, &fibers[i].context);
          }
        any |= met = let_go(lanes[0] & ~31, lanes.size(), AT_WARP);
      } while (met && warps_run_ahead);
    if (!any) any = let_go(0, n, AT_BLOCK);
    for (int i = 0; i < n; i++) all_done &= fibers[i].state == DONE;
    if (all_done) break;
    if (!any) {
      problem = "threads wait for others that never come: a barrier or shuffle not reached by all";
      return;
    }
  }
  const unsigned char* end = dynamic_shared() + shared;
  for (size_t i = 0; i < GUARD; i++)
    if (end[i] != UNTOUCHED) problem = "a write behind the end of dynamic shared memory";
}

// ``seed``: 0 runs threads from the first to the last, 1 from the last, and warps side by side; any
// other in a drawn order, each warp as far as it gets before the next begins.
inline const char* launch(Index grid, Index block, size_t shared, unsigned seed,
                          std::function<void()> call) {
  problem = nullptr;
  copies_are_late = seed != 0;
  warps_run_ahead = seed > 1;
  kernel = std::move(call);
  grid_size = grid;
  block_size = block;
  const unsigned n = block.x * block.y * block.z;
  if (n < 1 || n > 1024) return "a block has between 1 and 1024 threads";
  if (fibers.size() < n) fibers.resize(n);
  dynamic_memory.assign(ALIGNMENT + shared + GUARD, UNTOUCHED);
  std::mt19937 random(seed);
  warps.assign((n + 31) / 32, {});
  for (unsigned i = 0; i < n; i++) warps[i / 32].push_back(i);
  for (std::vector<int>& lanes : warps) {
    if (seed == 1) std::reverse(lanes.begin(), lanes.end());
    if (seed > 1) std::shuffle(lanes.begin(), lanes.end(), random);
  }
  if (seed == 1) std::reverse(warps.begin(), warps.end());
  if (seed > 1) std::shuffle(warps.begin(), warps.end(), random);
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x && !problem; x++) run_block({x, y, z}, shared);
  return problem;
}

// Call a kernel with the arguments that the pointers point at.
template <class... A, size_t... I>
const char* apply(void (*f)(A...), Index grid, Index block, size_t shared, unsigned seed,
                  void** arguments, std::index_sequence<I...>) {
  return launch(grid, block, shared, seed, [=] { f(*static_cast<A*>(arguments[I])...); });
}

template <class... A>
const char* call(void (*f)(A...), int count, const size_t* sizes, Index grid, Index block,
                 size_t shared, unsigned seed, void** arguments) {
  const size_t expected[] = {sizeof(A)...};
  if (count != (int)sizeof...(A)) return "a wrong number of arguments";
  for (int i = 0; i < count; i++)
    if (sizes[i] != expected[i]) return "an argument of another size than the kernel's";
  return apply(f, grid, block, shared, seed, arguments, std::index_sequence_for<A...>());
}

inline int thread_number() {
  const Index t = fibers[current].thread;
  return t.x + block_size.x * (t.y + block_size.y * t.z);
}

// Give each lane what another lane of its warp holds.
template <class T>
T from_lane(unsigned mask, T value, int lane) {
  if (mask != 0xffffffffu) problem = "a shuffle of less than the whole warp is not imitated";
  const int i = thread_number();
  std::memcpy(&exchange[i], &value, sizeof(T));
  wait(AT_WARP);
  T other;
  std::memcpy(&other, &exchange[(i & ~31) | (lane & 31)], sizeof(T));
  wait(AT_WARP);
  return other;
}

// Show the warp what this lane holds; returns what each shows, until it is called the time after.
template <class T>
const T* from_all_lanes(const T& mine) {
  static_assert(sizeof(T) <= 64, "a lane shows at most 64 bytes");
  const int i = thread_number();
  unsigned char* all = on_show[fibers[current].shown++ % 2][i / 32];
  std::memcpy(all + i % 32 * sizeof(T), &mine, sizeof(T));
  wait(AT_WARP);
  return reinterpret_cast<const T*>(all);
}

inline void land(const Copy& one) {
  std::memcpy(one.to, one.from, one.there);
  std::memset((char*)one.to + one.there, 0, one.bytes - one.there);
}

// A copy that may arrive from now on until it is waited for: at once with threads in the first
// order, else as late as can be. What is not ``there`` of its bytes is zero.
inline void copy_async(void* to, const void* from, size_t bytes, size_t there) {
  if ((size_t)to % bytes || (size_t)from % bytes) problem = "a copy that is not aligned";
  if (copies_are_late)
    fibers[current].copies.push_back({to, from, bytes, there});
  else
    land({to, from, bytes, there});
}

inline void wait_for_copies() {
  for (const Copy& one : fibers[current].copies) land(one);
  fibers[current].copies.clear();
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::fibers[cuda_on_cpu::current].thread)
#define blockIdx cuda_on_cpu::block_index
#define blockDim cuda_on_cpu::block_size
#define gridDim cuda_on_cpu::grid_size

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::AT_BLOCK); }
inline void __syncwarp(unsigned = 0xffffffffu) { cuda_on_cpu::wait(cuda_on_cpu::AT_WARP); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return cuda_on_cpu::from_lane(mask, value, (cuda_on_cpu::thread_number() & 31) ^ lanes);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return cuda_on_cpu::from_lane(mask, value, lane);
}

inline int __any_sync(unsigned, int mine) {
  const int* all = cuda_on_cpu::from_all_lanes(mine);
  return std::any_of(all, all + 32, [](int other) { return other != 0; });
}

template <class T>
T atomicAdd(T* place, T value) {
  const T before = *place;
  *place = before + value;
  return before;
}

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return (unsigned)(((unsigned long long)x * y) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return (unsigned long long)(((unsigned __int128)x * y) >> 64);
}

inline unsigned bits_of(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float half_to_float(unsigned short bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return (float)x;
}

inline unsigned short float_to_half(float x) {
  const _Float16 half = (_Float16)x;
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

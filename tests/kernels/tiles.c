/* The tile unit (AMX) by software, strict: what the hardware faults on, and reads or writes beside
   what a kernel was given, ends the process with a line that says why.

   After Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3. */

#define _GNU_SOURCE
#include <immintrin.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, BYTES = 64, REGIONS = 256 };

typedef struct {
  int epoch; /* when it was configured; tiles of another epoch are not configured */
  int rows[TILES], bytes[TILES];
  uint32_t words[TILES][ROWS][BYTES / 4];
  unsigned loaded; /* since results were last stored */
  int counted;
} Unit;

static __thread Unit unit; /* each thread has its own */
static int epoch = 1;
static struct { uintptr_t first, last; } regions[REGIONS];
static int region_count, error_output = STDERR_FILENO;
static long blocks[8], threads; /* what the test asks for at the end */

/* Whoever captures the output of tests is too late for a process that ends here. */
__attribute__((constructor)) static void keep_error_output(void) { error_output = dup(2); }

static void stop(const char *format, ...) {
  char text[256] = "software tiles: ";
  size_t used = strlen(text);
  va_list arguments;
  va_start(arguments, format);
  used += vsnprintf(text + used, sizeof text - used - 1, format, arguments);
  va_end(arguments);
  text[used++] = '\n';
  if (write(error_output, text, used) < 0) _exit(3);
  abort();
}

/* A kernel begins, with these arrays and no tiles configured. */
void tiles_begin(void) {
  __atomic_add_fetch(&epoch, 1, __ATOMIC_SEQ_CST);
  region_count = 0;
}

void tiles_allow(uintptr_t first, uintptr_t bytes) {
  if (region_count == REGIONS) stop("a kernel has more than %d arrays", REGIONS);
  regions[region_count].first = first;
  regions[region_count++].last = first + bytes;
}

/* How many blocks of each kind were stored (1 two rows of tiles, 2 two columns, 4 added to what was
   there), and how many threads multiplied. */
void tiles_counts(long *result) {
  memcpy(result, blocks, sizeof blocks);
  result[8] = threads;
}

static void need_tile(int tile, const char *name) {
  if (tile >= TILES) stop("%s of tile %d, of %d there are", name, tile, TILES);
  if (unit.epoch != __atomic_load_n(&epoch, __ATOMIC_SEQ_CST))
    stop("%s, but this thread has not configured its tiles in this kernel", name);
  if (!unit.rows[tile]) stop("%s of tile %d, which has no rows", name, tile);
}

/* The rows of a tile must all lie in one array; rows of scratch memory count as arrays. */
static void need_memory(int tile, uintptr_t first, int64_t step, const char *name) {
  int64_t reach = (unit.rows[tile] - 1) * step;
  uintptr_t low = first + (reach < 0 ? reach : 0);
  uintptr_t high = first + (reach > 0 ? reach : 0) + unit.bytes[tile];
  for (int i = 0; i < region_count; i++)
    if (regions[i].first <= low && high <= regions[i].last) return;
  stop("%s of %lu bytes that lie in no array of the kernel", name, (unsigned long)(high - low));
}

void tiles_ldtilecfg(const uint8_t *from) {
  if (from[0] != 1) stop("ldtilecfg of palette %d, expected 1", from[0]);
  if (from[1]) stop("ldtilecfg that starts at row %d", from[1]);
  for (int i = 2; i < BYTES; i++) {
    int reserved = i < 16 || (i >= 32 && i < 48) || i >= 56;
    if (reserved && from[i]) stop("ldtilecfg with %d in the reserved byte %d", from[i], i);
  }
  for (int i = 0; i < TILES; i++) {
    int rows = from[48 + i], bytes = from[16 + 2 * i] | from[17 + 2 * i] << 8;
    if (rows > ROWS || bytes > BYTES || !rows != !bytes)
      stop("ldtilecfg of tile %d to %d rows of %d bytes", i, rows, bytes);
    unit.rows[i] = rows;
    unit.bytes[i] = bytes;
  }
  memset(unit.words, 0, sizeof unit.words);
  unit.loaded = 0;
  unit.epoch = __atomic_load_n(&epoch, __ATOMIC_SEQ_CST);
}

/* What is planted to show that a thread without tiles is noticed. */
void tiles_forgotten(const uint8_t *from) { (void)from; }

void tiles_tilezero(uint8_t tile) {
  need_tile(tile, "tilezero");
  memset(unit.words[tile], 0, sizeof unit.words[tile]);
}

void tiles_tileloadd64(uint8_t tile, const uint8_t *from, int64_t step) {
  need_tile(tile, "tileloadd");
  need_memory(tile, (uintptr_t)from, step, "tileloadd");
  memset(unit.words[tile], 0, sizeof unit.words[tile]);
  for (int row = 0; row < unit.rows[tile]; row++)
    memcpy(unit.words[tile][row], from + row * step, unit.bytes[tile]);
  unit.loaded |= 1u << tile;
}

void tiles_tilestored64(uint8_t tile, uint8_t *to, int64_t step) {
  need_tile(tile, "tilestored");
  need_memory(tile, (uintptr_t)to, step, "tilestored");
  for (int row = 0; row < unit.rows[tile]; row++)
    memcpy(to + row * step, unit.words[tile][row], unit.bytes[tile]);
  if (tile == 0) {
    unsigned kind = (unit.loaded >> 5 & 1) | (unit.loaded >> 7 & 1) << 1 | (unit.loaded & 1) << 2;
    __atomic_add_fetch(&blocks[kind], 1, __ATOMIC_SEQ_CST);
    unit.loaded = 0;
  }
}

/* Sums of even and of odd products from zero, each product added in one rounding; then one to the
   other, and that to what was there. */
__attribute__((noinline)) static void multiply(int sums, int a, int b, int rows, int depth,
                                               int width) {
  for (int m = 0; m < rows; m++) {
    float even[BYTES / 4] = {0}, odd[BYTES / 4] = {0}, total[BYTES / 4];
    for (int k = 0; k < depth; k++) {
      uint32_t low = unit.words[a][m][k] << 16, high = unit.words[a][m][k] & 0xffff0000u;
      float left, right;
      memcpy(&left, &low, 4);
      memcpy(&right, &high, 4);
      for (int n = 0; n < BYTES / 4; n++) {
        union { uint32_t word; float number; } first, second;
        first.word = unit.words[b][k][n] << 16;
        second.word = unit.words[b][k][n] & 0xffff0000u;
        even[n] = __builtin_fmaf(left, first.number, even[n]);
        odd[n] = __builtin_fmaf(right, second.number, odd[n]);
      }
    }
    memcpy(total, unit.words[sums][m], sizeof total);
    for (int n = 0; n < width; n++) total[n] += even[n] + odd[n];
    memcpy(unit.words[sums][m], total, sizeof total);
  }
}

void tiles_tdpbf16ps(uint8_t sums, uint8_t a, uint8_t b) {
  need_tile(sums, "tdpbf16ps");
  need_tile(a, "tdpbf16ps");
  need_tile(b, "tdpbf16ps");
  if (sums == a || sums == b || a == b)
    stop("tdpbf16ps of tiles %d, %d and %d, which must differ", sums, a, b);
  const int *rows = unit.rows, *bytes = unit.bytes;
  if (bytes[sums] % 4 || bytes[a] % 4 || bytes[b] % 4 || rows[sums] != rows[a] ||
      bytes[a] / 4 != rows[b] || bytes[sums] != bytes[b])
    stop("tdpbf16ps of (%d, %d) with (%d, %d) to (%d, %d) rows and bytes", rows[a], bytes[a],
         rows[b], bytes[b], rows[sums], bytes[sums]);
  if (!unit.counted++) __atomic_add_fetch(&threads, 1, __ATOMIC_SEQ_CST);
  /* To the nearest, ties to even, no exceptions, numbers below the normal ones are zero. */
  unsigned before = _mm_getcsr();
  _mm_setcsr(0x1f80 | 0x8040);
  multiply(sums, a, b, rows[a], bytes[a] / 4, bytes[sums] / 4);
  _mm_setcsr(before);
}

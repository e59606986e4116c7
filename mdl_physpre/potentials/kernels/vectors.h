/* Vectors of W values of type REAL, and the functions that the sweeps in C need of them.

   Compiled with -DREAL=float -DSINGLE or with -DREAL=double.
*/

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define BYTES 64
#define W ((int64_t)(BYTES / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

INLINE vec load(const REAL *p) { return *(const vec *)p; }
INLINE void store(REAL *p, vec x) { *(vec *)p = x; }
INLINE void add(REAL *p, vec x) { store(p, load(p) + x); }
INLINE vec all(REAL x) { vec v = {0}; return v + x; }
INLINE REAL sum(vec x) {
#if defined(SINGLE) && defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#endif
  REAL s = 0;
  for (int k = 0; k < (int)(BYTES / sizeof(REAL)); k++) s += x[k];
  return s;
}

/* Stores what is not wanted again soon past the cache; p is a multiple of BYTES. */
INLINE void stream(REAL *p, vec x) {
#ifdef __AVX512F__
  _mm512_stream_si512((__m512i *)p, (__m512i)x);
#else
  store(p, x);
#endif
}

#ifdef SINGLE
typedef int32_t ivec __attribute__((vector_size(BYTES), may_alias));

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }
INLINE vec absolute(vec x) { return (vec)((ivec)x & ((ivec){0} + 0x7fffffff)); }

/* yes where x >= 0, no elsewhere */
INLINE vec where_positive(vec x, vec yes, vec no) {
#ifdef __AVX512F__
  return (vec)_mm512_mask_blend_ps(_mm512_cmp_ps_mask((__m512)x, (__m512)all(0), _CMP_GE_OQ), (__m512)no, (__m512)yes);
#else
  return choose(x >= 0.0f, yes, no);
#endif
}

/* x where it is below the bound or NaN, the bound elsewhere */
INLINE vec at_most(vec x, REAL bound) {
#ifdef __AVX512F__
  return (vec)_mm512_min_ps((__m512)all(bound), (__m512)x);
#else
  return choose(x > bound, all(bound), x);
#endif
}

/* exp(x) for x <= 87 to rounding: 2^n times a polynomial on |r| <= 1/2; 0 or nearly so below -87 */
INLINE vec exponential(vec x) {
  const vec magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer, which is left in the low bits */
#ifndef __AVX512F__
  x = choose(x < -87.0f, all(-87.0f), x);
#endif
  vec shifted = x * 1.44269504f + magic;
  vec n = shifted - magic;
  vec r = x * 1.44269504f - n;
  vec p = all(1.535336191e-4f);
  p = p * r + 1.339887441e-3f;
  p = p * r + 9.618437358e-3f;
  p = p * r + 5.550332471e-2f;
  p = p * r + 2.402264791e-1f;
  p = p * r + 6.931472029e-1f;
  p = p * r + 1.0f;
#ifdef __AVX512F__
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * (vec)(((ivec)shifted << 23) + (127 << 23));
#endif
}

INLINE vec reciprocal(vec x) {
#ifdef __AVX512F__
  vec r = (vec)_mm512_rcp14_ps((__m512)x);
  return r * (2.0f - x * r);
#else
  return 1.0f / x;
#endif
}

/* 1 / (1 + exp(-x)) to rounding; with AVX-512 exp(-x) = 2^n 2^r with n + r = -x log2(e), |r| <= 1/2 */
INLINE vec logistic(vec x) {
#ifdef __AVX512F__
  const vec magic = all(12582912.0f);
  x = (vec)_mm512_max_ps((__m512)all(-87.0f), _mm512_min_ps((__m512)all(87.0f), (__m512)x)); /* NaN stays */
  vec n = (magic - x * 1.44269502f) - magic;
  vec r = -x * 1.44269502f - n;
  r = r - x * 1.92596303e-8f;
  vec p = all(1.535336196e-4f);
  p = p * r + 1.339887385e-3f;
  p = p * r + 9.618436918e-3f;
  p = p * r + 5.550332367e-2f;
  p = p * r + 2.402264774e-1f;
  p = p * r + 6.931471825e-1f;
  p = p * r + 1.0f;
  return reciprocal(1.0f + (vec)_mm512_scalef_ps((__m512)p, (__m512)n));
#else
  return reciprocal(1.0f + exponential(at_most(-x, 87.0f)));
#endif
}
#else
INLINE vec logistic(vec x) {
  for (int k = 0; k < W; k++) {
    REAL z = exp(-fabs(x[k]));
    x[k] = (x[k] >= 0 ? 1 : z) / (1 + z);
  }
  return x;
}
#endif

/* x sigmoid(x) and its first two derivatives */
INLINE void silu(vec x, vec *f, vec *slope, vec *curvature) {
  vec s = logistic(x), rest = 1 - s;
  *f = x * s;
  *slope = s * (1 + x * rest);
  *curvature = s * rest * (2 + x * (1 - 2 * s));
}

/* ---- matrix products ---- */

/* A tile of the result, TILE_ROWS times TILE_PARTS registers, has to fit the processor's registers. */
#if defined __AVX512F__
#define PART_BYTES 64
#define TILE_ROWS 8
#define TILE_PARTS 2
#elif defined __AVX__
#define PART_BYTES 32
#define TILE_ROWS 6
#define TILE_PARTS 2
#else
#define PART_BYTES 16
#define TILE_ROWS 6
#define TILE_PARTS 2
#endif
#define PART ((int64_t)(PART_BYTES / sizeof(REAL)))

typedef REAL part __attribute__((vector_size(PART_BYTES), aligned(sizeof(REAL)), may_alias));

/* The numbers of rows and parts are constants wherever this is inlined, so that the sums stay in registers. */
INLINE void tile(const int rows, const int parts, int64_t depth, const REAL *a, int64_t a_row, int64_t a_step,
                 const REAL *b, int64_t b_row, const REAL *start, int64_t start_row, REAL *c, int64_t c_row) {
  part sums[TILE_ROWS][TILE_PARTS];
  for (int m = 0; m < rows; m++)
    for (int v = 0; v < parts; v++)
      sums[m][v] = start ? *(const part *)(start + m * start_row + v * PART) : (part){0};
  for (int64_t k = 0; k < depth; k++)
    for (int m = 0; m < rows; m++)
      for (int v = 0; v < parts; v++)
        sums[m][v] += a[m * a_row + k * a_step] * *(const part *)(b + k * b_row + v * PART);
  for (int m = 0; m < rows; m++)
    for (int v = 0; v < parts; v++) *(part *)(c + m * c_row + v * PART) = sums[m][v];
}

/* C = S + A B for A (rows, depth), B (depth, columns) and S (rows, columns), which is zero without a start.

   A row of an array begins "row" values after the one before; a column of A "step" values, so that A may be transposed.
   Fastest where rows of B lie an odd number of vectors apart: a power of two crowds them into few places of the cache.
*/
static inline void product(int64_t rows, int64_t columns, int64_t depth, const REAL *a, int64_t a_row, int64_t a_step,
                           const REAL *b, int64_t b_row, const REAL *start, int64_t start_row, REAL *c, int64_t c_row) {
#define TILES(height, parts)                                                                                     \
  for (; m + height <= rows; m += height)                                                                          \
    tile(height, parts, depth, a + m * a_row, a_row, a_step, b + n, b_row, start ? start + m * start_row + n : start, \
         start_row, c + m * c_row + n, c_row);
  int64_t n = 0;
  for (; n + TILE_PARTS * PART <= columns; n += TILE_PARTS * PART) {
    int64_t m = 0;
    TILES(TILE_ROWS, TILE_PARTS)
    TILES(1, TILE_PARTS)
  }
  for (; n + PART <= columns; n += PART) {
    int64_t m = 0;
    TILES(TILE_ROWS, 1)
    TILES(1, 1)
  }
#undef TILES
  for (; n < columns; n++)
    for (int64_t m = 0; m < rows; m++) {
      REAL s = start ? start[m * start_row + n] : 0;
      for (int64_t k = 0; k < depth; k++) s += a[m * a_row + k * a_step] * b[k * b_row + n];
      c[m * c_row + n] = s;
    }
}

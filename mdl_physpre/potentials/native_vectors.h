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
INLINE vec all(REAL x) { vec v = {0}; return v + x; }
INLINE REAL sum(vec x) {
#if defined(SINGLE) && defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#endif
  REAL s = 0;
  for (int k = 0; k < (int)(BYTES / sizeof(REAL)); k++) s += x[k];
  return s;
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

/* 1 / (1 + exp(-x)) */
INLINE vec sigmoid(vec x) {
  vec z = exponential(-absolute(x));
  return where_positive(x, all(1.0f), z) * reciprocal(1.0f + z);
}
#else
INLINE vec sigmoid(vec x) {
  for (int k = 0; k < W; k++) {
    REAL z = exp(-fabs(x[k]));
    x[k] = (x[k] >= 0 ? 1 : z) / (1 + z);
  }
  return x;
}
#endif

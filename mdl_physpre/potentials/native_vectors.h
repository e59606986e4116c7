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
  REAL s = 0;
  for (int k = 0; k < (int)(BYTES / sizeof(REAL)); k++) s += x[k];
  return s;
}

#ifdef SINGLE
typedef int32_t ivec __attribute__((vector_size(BYTES), may_alias));

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

/* exp(x) for -87 <= x <= 0 to rounding: 2^n times a polynomial on |r| <= ln(2)/2 */
INLINE vec exponential(vec x) {
  const vec magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer, which is left in the low bits */
  vec shifted = x * 1.44269504f + magic;
  vec n = shifted - magic;
  vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vec p = all(1.394858085e-3f);
  p = p * r + 8.375128890e-3f;
  p = p * r + 4.166621826e-2f;
  p = p * r + 1.666641548e-1f;
  p = p * r + 5.000000108e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  ivec scale = ((ivec)shifted << 23) + (127 << 23);
  return p * (vec)scale;
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
  const vec most = all(87.0f);
  vec size = (vec)((ivec)x & ((ivec){0} + 0x7fffffff));
  vec z = exponential(-choose(size < most, size, most));
  return choose(x >= 0.0f, all(1.0f), z) * reciprocal(1.0f + z);
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

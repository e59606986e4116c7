/* What m3gnet_native.c does with the rows of its arrays between two matrix products.

   Names are those of m3gnet_edges.py; _t is a transposed matrix. Arrays of two halves have 2 units values a row: the
   value's half, then the gate's.
*/

#include "native_vectors.h"

#define MOST 4 /* radial functions */
#define BLOCK 64

typedef struct {
  int64_t edges, near; /* how many */
  int64_t units, size, kind, n;
  int64_t stride;       /* of the rows of node, which are part of longer ones */
  int64_t wide, narrow; /* strides of rows of 2 units and of units values in matrices and in the scratch */
  const int64_t *i, *j, *at;
  const REAL *radial, *radial_dot, *weight, *first, *first_t, *second, *second_t, *bias, *gate, *gate_t;
  const REAL *e, *e_dot, *q, *q_dot, *source, *target_bar, *target_bar_dot, *above;
  REAL *a, *a_dot, *y, *y_dot, *h_bar, *node, *target, *radial_bar, *below, *q_bar;
  REAL *weight_sum, *first_sum, *second_sum, *bias_sum, *gate_sum;
} Arrays;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE void silu(vec x, vec *f, vec *slope, vec *curvature) {
  vec s = logistic(x), rest = 1 - s;
  *f = x * s;
  *slope = s * (1 + x * rest);
  *curvature = s * rest * (2 + x * (1 - 2 * s));
}

/* ---- the first layer: a += P_i + Q_j, h = silu(a); from a, the tangent of a or the adjoint of h in place ---- */

INLINE void hidden(const Arrays *x, int64_t r, int64_t rows, REAL *h) {
  const int64_t width = 2 * x->units;
  for (const int64_t end = r + rows; r < end; r++, h += x->wide) {
    const REAL *p = x->node + x->i[r] * x->stride, *q = x->node + x->j[r] * x->stride + width;
    for (int64_t c = 0; c < width; c += W) {
      vec a = load(h + c) + load(p + c) + load(q + c);
      stream(x->a + r * width + c, a);
      store(h + c, a * logistic(a));
    }
  }
}

INLINE void hidden_tangent(const Arrays *x, int64_t r, int64_t rows, REAL *h_dot) {
  const int64_t width = 2 * x->units;
  vec f, slope, curvature;
  for (const int64_t end = r + rows; r < end; r++, h_dot += x->wide) {
    const REAL *p = x->node + x->i[r] * x->stride, *q = x->node + x->j[r] * x->stride + width;
    for (int64_t c = 0; c < width; c += W) {
      vec a_dot = load(h_dot + c) + load(p + c) + load(q + c);
      silu(load(x->a + r * width + c), &f, &slope, &curvature);
      stream(x->a_dot + r * width + c, a_dot);
      store(h_dot + c, slope * a_dot);
    }
  }
}

INLINE void hidden_adjoint(const Arrays *x, int64_t r, int64_t rows, REAL *bar) {
  const int64_t width = 2 * x->units;
  vec f, slope, curvature;
  for (const int64_t end = r + rows; r < end; r++, bar += x->wide) {
    REAL *p = x->node + x->i[r] * x->stride, *q = x->node + x->j[r] * x->stride + width;
    for (int64_t c = 0; c < width; c += W) {
      silu(load(x->a + r * width + c), &f, &slope, &curvature);
      vec h_bar = load(bar + c), a_bar = h_bar * slope;
      stream(x->h_bar + r * width + c, h_bar);
      store(bar + c, a_bar);
      store(p + c, load(p + c) + a_bar);
      store(q + c, load(q + c) + a_bar);
    }
  }
}

/* bar_dot is the tangent of h_bar, and becomes that of a_bar. */
INLINE void hidden_second(const Arrays *x, int64_t r, int64_t rows, REAL *h, REAL *h_dot, REAL *a_bar, REAL *bar_dot) {
  const int64_t width = 2 * x->units;
  vec f, slope, curvature;
  for (const int64_t end = r + rows; r < end; r++) {
    REAL *p = x->node + x->i[r] * x->stride, *q = x->node + x->j[r] * x->stride + width;
    for (int64_t c = 0; c < width; c += W) {
      silu(load(x->a + r * width + c), &f, &slope, &curvature);
      vec a_dot = load(x->a_dot + r * width + c), h_bar = load(x->h_bar + r * width + c);
      vec a_bar_dot = load(bar_dot + c) * slope + h_bar * (curvature * a_dot);
      store(h + c, f);
      store(h_dot + c, slope * a_dot);
      store(a_bar + c, h_bar * slope);
      store(bar_dot + c, a_bar_dot);
      store(p + c, load(p + c) + a_bar_dot);
      store(q + c, load(q + c) + a_bar_dot);
    }
    h += x->wide, h_dot += x->wide, a_bar += x->wide, bar_dot += x->wide;
  }
}

/* ---- one row of the second layer: o = silu(y_g) sigmoid(y_s), target = source + o d with d = p (kind 1), silu(p) (2)
   or 1 (0). Without a y, o is 1, and the adjoints of y are left out. ---- */

/* Each radial function; unrolled, which a loop of x->n rounds would not be. */
#define EACH(k)                        \
  for (int64_t k = 0; k < MOST; k++) \
    if (k < x->n)

INLINE vec weighted(const REAL *radial, const Arrays *x, int64_t r, int64_t c) {
  vec p = all(0);
  EACH(k) p += radial[r * x->n + k] * load(x->weight + k * x->units + c);
  return p;
}

INLINE void factor(const Arrays *x, int64_t r, int64_t c, vec *d, vec *slope, vec *curvature) {
  *d = *slope = all(1);
  *curvature = all(0);
  if (x->kind) *d = weighted(x->radial, x, r, c);
  if (x->kind == 2) silu(*d, d, slope, curvature);
}

INLINE void opened(const REAL *y, int64_t units, vec *g, vec *g1, vec *g2, vec *s) {
  *g = *s = all(1);
  *g1 = *g2 = all(0);
  if (y) {
    silu(load(y), g, g1, g2);
    *s = logistic(load(y + units));
  }
}

INLINE int64_t place(const Arrays *x, int64_t r) { return (x->at ? x->at[r] : r) * x->units; }

INLINE void gate(const Arrays *x, int64_t r, const REAL *y, const REAL *source, REAL *target) {
  for (int64_t c = 0; c < x->units; c += W) {
    vec o, g1, g2, s, d, slope, curvature;
    opened(y ? y + c : y, x->units, &o, &g1, &g2, &s);
    factor(x, r, c, &d, &slope, &curvature);
    store(target + c, load(source + c) + o * s * d);
  }
}

INLINE void gate_adjoint(const Arrays *x, int64_t r, const REAL *y, REAL *y_bar) {
  const REAL *bar = x->target_bar + place(x, r);
  const int64_t units = x->units;
  vec sums[MOST] = {{0}};
  for (int64_t c = 0; c < units; c += W) {
    vec g, g1, g2, s, d, slope, curvature, t = load(bar + c);
    opened(y ? y + c : y, units, &g, &g1, &g2, &s);
    factor(x, r, c, &d, &slope, &curvature);
    vec along_s = t * s, p_bar = along_s * g * slope;
    EACH(k) sums[k] += p_bar * load(x->weight + k * units + c);
    if (!y) continue;
    vec o_bar_s = along_s * d;
    store(y_bar + c, o_bar_s * g1);
    store(y_bar + units + c, o_bar_s * g * (1 - s));
  }
  EACH(k) x->radial_bar[r * x->n + k] += sum(sums[k]);
}

INLINE void gate_tangent(const Arrays *x, int64_t r, const REAL *y, const REAL *y_dot, const REAL *source,
                         REAL *target) {
  for (int64_t c = 0; c < x->units; c += W) {
    vec g, g1, g2, s, d, slope, curvature, o_dot = all(0);
    opened(y ? y + c : y, x->units, &g, &g1, &g2, &s);
    factor(x, r, c, &d, &slope, &curvature);
    if (y) o_dot = s * (g1 * load(y_dot + c) + g * (1 - s) * load(y_dot + x->units + c));
    if (x->kind) o_dot = o_dot * d + g * s * (slope * weighted(x->radial_dot, x, r, c));
    store(target + c, load(source + c) + o_dot);
  }
}

INLINE void gate_second(const Arrays *x, int64_t r, const REAL *y, const REAL *y_dot, REAL *y_bar, REAL *y_bar_dot) {
  const REAL *bar = x->target_bar + place(x, r), *bar_dot = x->target_bar_dot + place(x, r);
  const int64_t units = x->units;
  for (int64_t c = 0; c < units; c += W) {
    vec g, g1, g2, s, d, slope, curvature, t = load(bar + c), t_dot = load(bar_dot + c), yg = all(0), ys = all(0);
    opened(y ? y + c : y, units, &g, &g1, &g2, &s);
    factor(x, r, c, &d, &slope, &curvature);
    if (y) {
      yg = load(y_dot + c);
      ys = load(y_dot + units + c);
    }
    vec s1 = s * (1 - s), by_g = g1 * s, by_s = g * s1, by_both = g1 * s1; /* derivatives of o */
    vec o = g * s, o_dot = by_g * yg + by_s * ys, o_bar = t * d, o_bar_dot = t_dot * d;
    if (x->kind) {
      vec p_dot = weighted(x->radial_dot, x, r, c), along = t * slope, p_bar = along * o;
      vec p_bar_dot = t_dot * slope * o + along * o_dot + t * o * (curvature * p_dot);
      o_bar_dot += along * p_dot;
      EACH(k) {
        REAL *w = x->weight_sum + k * units + c;
        store(w, load(w) + p_bar_dot * x->radial[r * x->n + k] + p_bar * x->radial_dot[r * x->n + k]);
      }
    }
    if (!y) continue;
    vec first = o_bar_dot * by_g + o_bar * (g2 * s * yg + by_both * ys);
    vec second = o_bar_dot * by_s + o_bar * (by_both * yg + by_s * (1 - 2 * s) * ys);
    store(y_bar + c, o_bar * by_g);
    store(y_bar + units + c, o_bar * by_s);
    store(y_bar_dot + c, first);
    store(y_bar_dot + units + c, second);
    if (x->bias_sum) {
      store(x->bias_sum + c, load(x->bias_sum + c) + first);
      store(x->bias_sum + units + c, load(x->bias_sum + units + c) + second);
    }
  }
}

/* The operations of m3gnet_edges.py for the rows first <= r < last, BLOCK of them at a time, so that what passes from a
   matrix product to the next stays in the processor's cache.

   Compiled with -DREAL=float -DSINGLE or with -DREAL=double. A row is an edge, in three_body*() but the first and the
   tangent a near edge; "units" is a whole number of vectors. Arrays of two halves have 2 units values a row: the value's
   half, then the gate's. Names are those of m3gnet_edges.py; _t is a transposed matrix.
*/

#include "native_vectors.h"

#define MOST 4 /* radial functions */
#define BLOCK 96

typedef struct {
  int64_t begin, end; /* of the rows at hand, all threads' together */
  int64_t units, size, kind, n, n_near;
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
  vec s = sigmoid(x), rest = 1 - s;
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
      store(h + c, a * sigmoid(a));
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
    *s = sigmoid(load(y + units));
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
    vec p_bar = t * g * s * slope, o_bar = t * d;
    EACH(k) sums[k] += p_bar * load(x->weight + k * units + c);
    if (!y) continue;
    store(y_bar + c, o_bar * g1 * s);
    store(y_bar + units + c, o_bar * g * (s * (1 - s)));
  }
  EACH(k) x->radial_bar[r * x->n + k] += sum(sums[k]);
}

INLINE void gate_tangent(const Arrays *x, int64_t r, const REAL *y, const REAL *y_dot, const REAL *source,
                         REAL *target) {
  for (int64_t c = 0; c < x->units; c += W) {
    vec g, g1, g2, s, d, slope, curvature, o_dot = all(0);
    opened(y ? y + c : y, x->units, &g, &g1, &g2, &s);
    factor(x, r, c, &d, &slope, &curvature);
    if (y) o_dot = g1 * s * load(y_dot + c) + g * (s * (1 - s)) * load(y_dot + x->units + c);
    if (x->kind) o_dot = o_dot * d + g * s * slope * weighted(x->radial_dot, x, r, c);
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
    vec s1 = s * (1 - s), s2 = s1 * (1 - 2 * s);
    vec along_g = g1 * s * yg + g * s1 * ys, o_bar = t * d, o_bar_dot = t_dot * d;
    if (x->kind) {
      vec p_dot = weighted(x->radial_dot, x, r, c), o = g * s;
      vec p_bar = t * o * slope, p_bar_dot = (t_dot * o + t * along_g) * slope + t * o * curvature * p_dot;
      o_bar_dot += t * slope * p_dot;
      EACH(k) {
        REAL *w = x->weight_sum + k * units + c;
        store(w, load(w) + p_bar_dot * x->radial[r * x->n + k] + p_bar * x->radial_dot[r * x->n + k]);
      }
    }
    if (!y) continue;
    vec first = o_bar_dot * g1 * s + o_bar * (g2 * s * yg + g1 * s1 * ys);
    vec second = o_bar_dot * g * s1 + o_bar * (g1 * s1 * yg + g * s2 * ys);
    store(y_bar + c, o_bar * g1 * s);
    store(y_bar + units + c, o_bar * g * s1);
    store(y_bar_dot + c, first);
    store(y_bar_dot + units + c, second);
    if (x->bias_sum) {
      store(x->bias_sum + c, load(x->bias_sum + c) + first);
      store(x->bias_sum + units + c, load(x->bias_sum + units + c) + second);
    }
  }
}

/* ---- the encoder: target = silu(W g) ---- */

void encoder(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  memset(x->target + first * x->units, 0, (last - first) * x->units * sizeof(REAL));
  for (int64_t r = first; r < last; r++) gate(x, r, NULL, x->target + place(x, r), x->target + place(x, r));
}

void encoder_adjoint(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  for (int64_t r = first; r < last; r++) gate_adjoint(x, r, NULL, NULL);
}

void encoder_tangent(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  memset(x->target + first * x->units, 0, (last - first) * x->units * sizeof(REAL));
  for (int64_t r = first; r < last; r++)
    gate_tangent(x, r, NULL, NULL, x->target + place(x, r), x->target + place(x, r));
}

void encoder_second(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  for (int64_t r = first; r < last; r++) gate_second(x, r, NULL, NULL, NULL, NULL);
}

/* ---- a gated perceptron ---- */

/* Rows with the same target stay with one thread. */
INLINE void own_rows(const Arrays *x, int64_t *first, int64_t *last) {
  if (!x->at) return;
  while (*first > x->begin && *first < x->end && x->at[*first] == x->at[*first - 1]) ++*first;
  while (*last > x->begin && *last < x->end && x->at[*last] == x->at[*last - 1]) ++*last;
}

/* Each half of the rows of b times its own matrix. */
INLINE void halves(const Arrays *x, int64_t rows, const REAL *b, const REAL *matrices, const REAL *bias,
                   REAL *out) {
  for (int64_t half = 0; half < 2; half++)
    product(rows, x->units, x->units, b + half * x->units, x->wide, 1, matrices + half * x->units * x->narrow,
            x->narrow, bias ? bias + half * x->units : bias, 0, out + half * x->units, x->wide);
}

/* Both halves of a row for the sweeps to come. */
INLINE void keep(const Arrays *x, const REAL *row, REAL *kept) {
  for (int64_t c = 0; c < 2 * x->units; c += W) stream(kept + c, load(row + c));
}

void perceptron(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  const int64_t u = x->units, w = 2 * u;
  REAL *y = scratch + BLOCK * x->wide;
  own_rows(x, &first, &last);
  for (int64_t r = first; r < last; r += BLOCK) {
    const int64_t n = least(BLOCK, last - r);
    product(n, w, u, x->e + r * u, u, 1, x->first_t, x->wide, NULL, 0, scratch, x->wide);
    hidden(x, r, n, scratch);
    halves(x, n, scratch, x->second_t, x->bias, y);
    for (int64_t k = 0; k < n; k++) {
      REAL *t = x->target + place(x, r + k);
      keep(x, y + k * x->wide, x->y + (r + k) * w);
      gate(x, r + k, y + k * x->wide, x->source ? x->source + place(x, r + k) : t, t);
    }
  }
}

void perceptron_adjoint(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  const int64_t u = x->units, w = 2 * u;
  REAL *bar = scratch + BLOCK * x->wide;
  for (int64_t r = first; r < last; r += BLOCK) {
    const int64_t n = least(BLOCK, last - r);
    for (int64_t k = 0; k < n; k++) gate_adjoint(x, r + k, x->y + (r + k) * w, scratch + k * x->wide);
    halves(x, n, scratch, x->second, NULL, bar);
    hidden_adjoint(x, r, n, bar);
    product(n, u, w, bar, x->wide, 1, x->first, x->narrow, x->above ? x->above + r * u : NULL, u, x->below + r * u,
            u);
  }
}

void perceptron_tangent(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  const int64_t u = x->units, w = 2 * u;
  REAL *y_dot = scratch + BLOCK * x->wide;
  own_rows(x, &first, &last);
  for (int64_t r = first; r < last; r += BLOCK) {
    const int64_t n = least(BLOCK, last - r);
    product(n, w, u, x->e_dot + r * u, u, 1, x->first_t, x->wide, NULL, 0, scratch, x->wide);
    hidden_tangent(x, r, n, scratch);
    halves(x, n, scratch, x->second_t, NULL, y_dot);
    for (int64_t k = 0; k < n; k++) {
      const REAL *y = x->y + (r + k) * w;
      REAL *t = x->target + place(x, r + k);
      keep(x, y_dot + k * x->wide, x->y_dot + (r + k) * w);
      gate_tangent(x, r + k, y, y_dot + k * x->wide, x->source ? x->source + place(x, r + k) : t, t);
    }
  }
}

/* sums (units_a, units_b) += a_dot^T b + a^T b_dot over the rows */
INLINE void add_products(int64_t rows, int64_t columns_a, int64_t columns_b, const REAL *a, const REAL *a_dot,
                         int64_t a_row, const REAL *b, const REAL *b_dot, int64_t b_row, REAL *sums) {
  product(columns_a, columns_b, rows, a_dot, 1, a_row, b, b_row, sums, columns_b, sums, columns_b);
  product(columns_a, columns_b, rows, a, 1, a_row, b_dot, b_row, sums, columns_b, sums, columns_b);
}

void perceptron_second(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  const int64_t u = x->units, w = 2 * u, size = BLOCK * x->wide;
  REAL *y_bar = scratch, *y_bar_dot = y_bar + size, *h = y_bar_dot + size, *h_dot = h + size;
  REAL *a_bar = h_dot + size, *bar_dot = a_bar + size;
  for (int64_t r = first; r < last; r += BLOCK) {
    const int64_t n = least(BLOCK, last - r);
    for (int64_t k = 0; k < n; k++) {
      const int64_t at = (r + k) * w, to = k * x->wide;
      gate_second(x, r + k, x->y + at, x->y_dot + at, y_bar + to, y_bar_dot + to);
    }
    halves(x, n, y_bar_dot, x->second, NULL, bar_dot);
    hidden_second(x, r, n, h, h_dot, a_bar, bar_dot);
    for (int64_t c = 0; c < w; c += u)
      add_products(n, u, u, y_bar + c, y_bar_dot + c, x->wide, h + c, h_dot + c, x->wide, x->second_sum + c * u);
    add_products(n, w, u, a_bar, bar_dot, x->wide, x->e + r * u, x->e_dot + r * u, u, x->first_sum);
    product(n, u, w, bar_dot, x->wide, 1, x->first, x->narrow, x->above ? x->above + r * u : NULL, u, x->below + r * u,
            u);
  }
}

/* ---- three-body terms: t = W q of the near edges, which are added to all edges' target ---- */

INLINE void opening(const Arrays *x, int64_t rows, const REAL *q, REAL *t) {
  product(rows, 2 * x->units, x->size, q, x->size, 1, x->gate_t, x->wide, NULL, 0, t, x->wide);
}

/* Place among the near edges of the first that is not before this edge. */
INLINE int64_t near_from(const Arrays *x, int64_t edge) {
  int64_t low = 0, high = x->n_near;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (x->at[middle] < edge) low = middle + 1;
    else high = middle;
  }
  return low;
}

/* Copies edges from the source, up to the first near edge after the next block; returns the near edges of the block. */
INLINE int64_t next_block(const Arrays *x, int64_t k, int64_t stop, int64_t *edge, int64_t last) {
  const int64_t n = least(BLOCK, stop - k), end = k + n < stop ? x->at[k + n] : last;
  memcpy(x->target + *edge * x->units, x->source + *edge * x->units, (end - *edge) * x->units * sizeof(REAL));
  *edge = end;
  return n;
}

void three_body(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  const int64_t stop = near_from(x, last);
  for (int64_t k = near_from(x, first), n; first < last; k += n) {
    n = next_block(x, k, stop, &first, last);
    opening(x, n, x->q + k * x->size, scratch);
    for (int64_t m = 0; m < n; m++) {
      REAL *t = x->target + x->at[k + m] * x->units;
      gate(x, 0, scratch + m * x->wide, t, t);
    }
  }
}

void three_body_adjoint(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  REAL *t_bar = scratch + BLOCK * x->wide;
  for (int64_t k = first; k < last; k += BLOCK) {
    const int64_t n = least(BLOCK, last - k);
    opening(x, n, x->q + k * x->size, scratch);
    for (int64_t m = 0; m < n; m++) gate_adjoint(x, k + m, scratch + m * x->wide, t_bar + m * x->wide);
    product(n, x->size, 2 * x->units, t_bar, x->wide, 1, x->gate, x->size, NULL, 0, x->q_bar + k * x->size, x->size);
  }
}

void three_body_tangent(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  REAL *t_dot = scratch + BLOCK * x->wide;
  const int64_t stop = near_from(x, last);
  for (int64_t k = near_from(x, first), n; first < last; k += n) {
    n = next_block(x, k, stop, &first, last);
    opening(x, n, x->q + k * x->size, scratch);
    opening(x, n, x->q_dot + k * x->size, t_dot);
    for (int64_t m = 0; m < n; m++) {
      REAL *t = x->target + x->at[k + m] * x->units;
      gate_tangent(x, 0, scratch + m * x->wide, t_dot + m * x->wide, t, t);
    }
  }
}

void three_body_second(int64_t first, int64_t last, const Arrays *arrays, REAL *scratch) {
  const Arrays own = *arrays, *x = &own;
  const int64_t size = BLOCK * x->wide;
  REAL *t = scratch, *t_dot = t + size, *t_bar = t_dot + size, *t_bar_dot = t_bar + size;
  for (int64_t k = first; k < last; k += BLOCK) {
    const int64_t n = least(BLOCK, last - k);
    const REAL *q = x->q + k * x->size, *q_dot = x->q_dot + k * x->size;
    opening(x, n, q, t);
    opening(x, n, q_dot, t_dot);
    for (int64_t m = 0; m < n; m++) {
      const int64_t to = m * x->wide;
      gate_second(x, k + m, t + to, t_dot + to, t_bar + to, t_bar_dot + to);
    }
    add_products(n, 2 * x->units, x->size, t_bar, t_bar_dot, x->wide, q, q_dot, x->size, x->gate_sum);
    product(n, x->size, 2 * x->units, t_bar_dot, x->wide, 1, x->gate, x->size, NULL, 0, x->q_bar + k * x->size,
            x->size);
  }
}

/* What operators.c does with the rows of its arrays between two matrix products.

   Names are those of operators.py; _t is a transposed matrix, _bar an adjoint, _dot a rate, _ext what a second
   derivative adds to an adjoint. The perceptron of the edges has k = 0, that of the atoms k = 1. Arrays of two halves
   have 2 units values a row: the value's half, then the gate's.
*/

#include "vectors.h"

#define MOST 4 /* radial functions */

typedef struct {
  int64_t n_edges, n_near, units, size, n_radial;
  int64_t wide, narrow; /* strides of rows of 2 units and of units values in matrices and in the scratch */
  const int64_t *i, *j, *near, *start;
  const REAL *centre, *neighbour, *q, *e, *radial;
  const REAL *gate, *gate_t, *first, *first_t, *second, *second_t, *bias, *scale, *encoder;
  REAL *edge, *message, *kept;
  const REAL *edge_bar, *message_bar, *kept_bar;
  REAL *centre_bar, *neighbour_bar, *q_bar, *e_bar, *radial_bar, *bars;
  REAL *gate_sum, *first_sum, *second_sum, *bias_sum, *scale_sum, *encoder_sum;
  const REAL *centre_dot, *neighbour_dot, *q_dot, *e_dot, *radial_dot;
  REAL *edge_dot, *message_dot, *kept_ext, *q_ext;
} Block;

/* kept holds a_0, y_0, a_1, y_1, bars the adjoints of silu(a_0), silu(a_1) and e^2, each of all edges. */
#define KEPT(x, r, array) (((array) * (x)->n_edges + (r)) * 2 * (x)->units)
#define BARS(x, r, k) (((k) * 2 * (x)->n_edges + (r) * 2) * (x)->units)
#define E2_BAR(x, r) ((4 * (x)->n_edges + (r)) * (x)->units)
/* centre and neighbour hold the parts of a that belong to atoms. */
#define NODE(x, atom, k) (((atom) * 4 + (k) * 2) * (x)->units)

/* ---- the first layer: a += P_i + Q_j, h = silu(a); from a, its rate or the adjoint of h in place ---- */

INLINE void hidden(const Block *x, int k, int64_t r, REAL *h) {
  const REAL *p = x->centre + NODE(x, x->i[r], k), *q = x->neighbour + NODE(x, x->j[r], k);
  REAL *kept = x->kept + KEPT(x, r, 2 * k);
  for (int64_t c = 0; c < 2 * x->units; c += W) {
    vec a = load(h + c) + load(p + c) + load(q + c);
    stream(kept + c, a);
    store(h + c, a * logistic(a));
  }
}

/* h: silu(a), for gradients in parameters */
INLINE void hidden_backward(const Block *x, int k, int64_t r, const int parameters, REAL *bar, REAL *h) {
  REAL *p = x->centre_bar + NODE(x, x->i[r], k), *q = x->neighbour_bar + NODE(x, x->j[r], k);
  const REAL *kept = x->kept + KEPT(x, r, 2 * k), *ext = parameters && x->kept_bar ? x->kept_bar + KEPT(x, r, 2 * k) : 0;
  for (int64_t c = 0; c < 2 * x->units; c += W) {
    vec f, slope, curvature, h_bar = load(bar + c);
    silu(load(kept + c), &f, &slope, &curvature);
    vec a_bar = h_bar * slope;
    if (ext) a_bar += load(ext + c);
    if (parameters) store(h + c, f);
    else if (x->bars) stream(x->bars + BARS(x, r, k) + c, h_bar);
    store(bar + c, a_bar);
    add(p + c, a_bar);
    add(q + c, a_bar);
  }
}

/* dot: the rate of a without P and Q, then that of h */
INLINE void hidden_second(const Block *x, int k, int64_t r, REAL *dot, REAL *a_bar) {
  const REAL *p = x->centre_dot ? x->centre_dot + NODE(x, x->i[r], k) : 0;
  const REAL *q = x->neighbour_dot ? x->neighbour_dot + NODE(x, x->j[r], k) : 0;
  const REAL *kept = x->kept + KEPT(x, r, 2 * k), *bar = x->bars + BARS(x, r, k);
  REAL *ext = x->kept_ext + KEPT(x, r, 2 * k);
  for (int64_t c = 0; c < 2 * x->units; c += W) {
    vec f, slope, curvature, a_dot = load(dot + c), h_bar = load(bar + c);
    if (p) a_dot += load(p + c);
    if (q) a_dot += load(q + c);
    silu(load(kept + c), &f, &slope, &curvature);
    stream(ext + c, h_bar * (curvature * a_dot));
    store(a_bar + c, h_bar * slope);
    store(dot + c, slope * a_dot);
  }
}

/* ---- one row of the second layer: t = s + o d with o = silu(y_g) sigmoid(y_s) and d = p, silu(p) or 1. For the
   encoder o is 1, and there is no y. Weights of p are those of the kind. ---- */

enum { EDGE, ATOM, ENCODER, THREE };

/* Each radial function; unrolled, which a loop of n_radial rounds would not be. */
#define EACH(k)                      \
  for (int64_t k = 0; k < MOST; k++) \
    if (k < x->n_radial)

/* The weights of p, or their gradients */
#define SCALE(x, kind, name) ((kind) == ENCODER ? (x)->encoder##name : (x)->scale##name + (kind) * (x)->n_radial * (x)->units)

INLINE vec weighted(const Block *x, const REAL *radial, const REAL *scale) {
  vec p = all(0);
  EACH(k) p += radial[k] * load(scale + k * x->units);
  return p;
}

INLINE void factor(const Block *x, const int kind, const REAL *radial, const REAL *scale, vec *d, vec *slope,
                   vec *curvature) {
  *d = *slope = all(1);
  *curvature = all(0);
  if (kind != THREE) *d = weighted(x, radial, scale);
  if (kind == ATOM || kind == ENCODER) silu(*d, d, slope, curvature);
}

INLINE void opened(const int kind, const REAL *y, int64_t units, vec *g, vec *g1, vec *g2, vec *s) {
  *g = *s = all(1);
  *g1 = *g2 = all(0);
  if (kind == ENCODER) return;
  silu(load(y), g, g1, g2);
  *s = logistic(load(y + units));
}

INLINE void gate(const Block *x, const int kind, int64_t r, const REAL *y, const REAL *source, REAL *target) {
  const REAL *radial = x->radial + r * x->n_radial, *scale = kind == THREE ? 0 : SCALE(x, kind, );
  for (int64_t c = 0; c < x->units; c += W) {
    vec g, g1, g2, s, d, slope, curvature;
    opened(kind, y + c, x->units, &g, &g1, &g2, &s);
    factor(x, kind, radial, scale + c, &d, &slope, &curvature);
    store(target + c, source ? load(source + c) + g * s * d : g * s * d);
  }
}

/* From the adjoint of t that of y, and the gradients of the weights of p and of the bias or, where wanted, that of g */
INLINE void gate_backward(const Block *x, const int kind, int64_t r, const int parameters, const REAL *bar,
                          const REAL *y, const REAL *y_ext, REAL *y_bar) {
  const REAL *radial = x->radial + r * x->n_radial, *scale = kind == THREE ? 0 : SCALE(x, kind, );
  REAL *gradient = kind == THREE || !parameters ? 0 : SCALE(x, kind, _sum), *bias = x->bias_sum + kind * 2 * x->units;
  const int64_t units = x->units;
  vec sums[MOST] = {{0}};
  for (int64_t c = 0; c < units; c += W) {
    vec g, g1, g2, s, d, slope, curvature, t = load(bar + c);
    opened(kind, y + c, units, &g, &g1, &g2, &s);
    factor(x, kind, radial, scale + c, &d, &slope, &curvature);
    vec along_s = t * s, p_bar = along_s * g * slope, o_bar_s = along_s * d;
    if (kind != THREE) EACH(k) {
      if (parameters) add(gradient + k * units + c, p_bar * radial[k]);
      if (x->radial_bar) sums[k] += p_bar * load(scale + k * units + c);
    }
    if (kind == ENCODER) continue;
    vec value = o_bar_s * g1, closing = o_bar_s * g * (1 - s);
    if (y_ext) {
      value += load(y_ext + c);
      closing += load(y_ext + units + c);
    }
    store(y_bar + c, value);
    store(y_bar + units + c, closing);
    if (parameters && kind != THREE) {
      add(bias + c, value);
      add(bias + units + c, closing);
    }
  }
  if (kind != THREE && x->radial_bar) EACH(k) x->radial_bar[r * x->n_radial + k] += sum(sums[k]);
}

/* The rate of t from those of s, y and g, and of adjoint . rate the gradients in y and in the weights of p;
   y_bar: the adjoint of y; may be y_dot */
INLINE void gate_second(const Block *x, const int kind, int64_t r, const REAL *bar, const REAL *y, const REAL *y_dot,
                        const REAL *source, REAL *target, REAL *y_bar, REAL *y_ext) {
  const int64_t units = x->units, n = x->n_radial;
  const REAL *radial = x->radial + r * n, *radial_dot = x->radial_dot + r * n;
  const REAL *scale = kind == THREE ? 0 : SCALE(x, kind, );
  REAL *gradient = kind == THREE ? 0 : SCALE(x, kind, _sum);
  for (int64_t c = 0; c < units; c += W) {
    vec g, g1, g2, s, d, slope, curvature, t = load(bar + c), yg = all(0), ys = all(0), o_bar_ext = all(0);
    opened(kind, y + c, units, &g, &g1, &g2, &s);
    factor(x, kind, radial, scale + c, &d, &slope, &curvature);
    if (kind != ENCODER) {
      yg = load(y_dot + c);
      ys = load(y_dot + units + c);
    }
    vec s1 = s * (1 - s), by_g = g1 * s, by_s = g * s1, by_both = g1 * s1; /* derivatives of o */
    vec o = g * s, o_dot = by_g * yg + by_s * ys, o_bar = t * d, rate = o_dot * d;
    if (kind != THREE) {
      vec p_dot = weighted(x, radial_dot, scale + c), along = t * slope, p_bar = along * o;
      vec p_ext = along * o_dot + t * o * (curvature * p_dot);
      rate += o * (slope * p_dot);
      o_bar_ext = along * p_dot;
      EACH(k) add(gradient + k * units + c, p_ext * radial[k] + p_bar * radial_dot[k]);
    }
    store(target + c, (source ? load(source + c) : all(0)) + rate);
    if (kind == ENCODER) continue;
    store(y_bar + c, o_bar * by_g);
    store(y_bar + units + c, o_bar * by_s);
    store(y_ext + c, o_bar_ext * by_g + o_bar * (g2 * s * yg + by_both * ys));
    store(y_ext + units + c, o_bar_ext * by_s + o_bar * (by_both * yg + by_s * (1 - 2 * s) * ys));
  }
}

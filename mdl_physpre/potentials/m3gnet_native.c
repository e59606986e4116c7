/* The operations of m3gnet_edges.py, BLOCK edges at a time from the three-body terms to the atoms, so that what passes
   from one matrix product to the next stays in the processor's cache.

   Compiled with -DREAL=float -DSINGLE or with -DREAL=double; "units" is a whole number of vectors. Each function works
   on the edges first <= r < last, which are those of one thread, and has scratch for six arrays of BLOCK rows.
*/

#include "m3gnet_rows.h"

/* ---- the encoder: target = silu(W g) ---- */

void encoder(int64_t first, int64_t last, const Arrays *x) {
  memset(x->target + first * x->units, 0, (last - first) * x->units * sizeof(REAL));
  for (int64_t r = first; r < last; r++) gate(x, r, NULL, x->target + r * x->units, x->target + r * x->units);
}

void encoder_adjoint(int64_t first, int64_t last, const Arrays *x) {
  for (int64_t r = first; r < last; r++) gate_adjoint(x, r, NULL, NULL);
}

void encoder_tangent(int64_t first, int64_t last, const Arrays *x) {
  memset(x->target + first * x->units, 0, (last - first) * x->units * sizeof(REAL));
  for (int64_t r = first; r < last; r++)
    gate_tangent(x, r, NULL, NULL, x->target + r * x->units, x->target + r * x->units);
}

void encoder_second(int64_t first, int64_t last, const Arrays *x) {
  for (int64_t r = first; r < last; r++) gate_second(x, r, NULL, NULL, NULL, NULL);
}

/* ---- a gated perceptron for n edges from r on ---- */

/* Each half of the rows of b times its own matrix. */
INLINE void halves(const Arrays *x, int64_t n, const REAL *b, const REAL *matrices, const REAL *bias, REAL *out) {
  for (int64_t half = 0; half < 2; half++)
    product(n, x->units, x->units, b + half * x->units, x->wide, 1, matrices + half * x->units * x->narrow, x->narrow,
            bias ? bias + half * x->units : bias, 0, out + half * x->units, x->wide);
}

/* Both halves of a row for the sweeps to come. */
INLINE void keep(const Arrays *x, const REAL *row, REAL *kept) {
  for (int64_t c = 0; c < 2 * x->units; c += W) stream(kept + c, load(row + c));
}

/* The adjoint of e, or its tangent, from that of a. */
INLINE void below(const Arrays *x, int64_t r, int64_t n, const REAL *a_bar) {
  const int64_t u = x->units;
  product(n, u, 2 * u, a_bar, x->wide, 1, x->first, x->narrow, x->above ? x->above + r * u : NULL, u, x->below + r * u,
          u);
}

static void perceptron(int64_t r, int64_t n, const Arrays *arrays, REAL *h) {
  const Arrays own = *arrays, *x = &own;
  const int64_t u = x->units, w = 2 * u;
  REAL *y = h + BLOCK * x->wide;
  product(n, w, u, x->e + r * u, u, 1, x->first_t, x->wide, NULL, 0, h, x->wide);
  hidden(x, r, n, h);
  halves(x, n, h, x->second_t, x->bias, y);
  for (int64_t k = 0; k < n; k++) {
    REAL *t = x->target + place(x, r + k);
    keep(x, y + k * x->wide, x->y + (r + k) * w);
    gate(x, r + k, y + k * x->wide, x->source ? x->source + place(x, r + k) : t, t);
  }
}

static void perceptron_adjoint(int64_t r, int64_t n, const Arrays *arrays, REAL *y_bar) {
  const Arrays own = *arrays, *x = &own;
  REAL *a_bar = y_bar + BLOCK * x->wide;
  for (int64_t k = 0; k < n; k++) gate_adjoint(x, r + k, x->y + (r + k) * 2 * x->units, y_bar + k * x->wide);
  halves(x, n, y_bar, x->second, NULL, a_bar);
  hidden_adjoint(x, r, n, a_bar);
  below(x, r, n, a_bar);
}

static void perceptron_tangent(int64_t r, int64_t n, const Arrays *arrays, REAL *h_dot) {
  const Arrays own = *arrays, *x = &own;
  const int64_t u = x->units, w = 2 * u;
  REAL *y_dot = h_dot + BLOCK * x->wide;
  product(n, w, u, x->e_dot + r * u, u, 1, x->first_t, x->wide, NULL, 0, h_dot, x->wide);
  hidden_tangent(x, r, n, h_dot);
  halves(x, n, h_dot, x->second_t, NULL, y_dot);
  for (int64_t k = 0; k < n; k++) {
    REAL *t = x->target + place(x, r + k);
    keep(x, y_dot + k * x->wide, x->y_dot + (r + k) * w);
    gate_tangent(x, r + k, x->y + (r + k) * w, y_dot + k * x->wide, x->source ? x->source + place(x, r + k) : t, t);
  }
}

/* sums += a_dot^T b + a^T b_dot over n edges as one product: a_dot is followed by a, and b by b_dot. */
INLINE void add_products(int64_t n, int64_t columns_a, int64_t columns_b, const REAL *a, int64_t a_row, const REAL *b,
                         int64_t b_row, REAL *sums) {
  product(columns_a, columns_b, 2 * n, a, 1, a_row, b, b_row, sums, columns_b, sums, columns_b);
}

static void perceptron_second(int64_t r, int64_t n, const Arrays *arrays, REAL *y_bar_dot) {
  const Arrays own = *arrays, *x = &own;
  const int64_t u = x->units, w = 2 * u, size = n * x->wide;
  REAL *y_bar = y_bar_dot + size, *h = y_bar + size, *h_dot = h + size, *a_bar_dot = h_dot + size;
  REAL *a_bar = a_bar_dot + size, *e = h, *e_dot = e + n * x->narrow;
  for (int64_t k = 0; k < n; k++) {
    const int64_t at = (r + k) * w, to = k * x->wide;
    gate_second(x, r + k, x->y + at, x->y_dot + at, y_bar + to, y_bar_dot + to);
  }
  halves(x, n, y_bar_dot, x->second, NULL, a_bar_dot);
  hidden_second(x, r, n, h, h_dot, a_bar, a_bar_dot);
  for (int64_t c = 0; c < w; c += u)
    add_products(n, u, u, y_bar_dot + c, x->wide, h + c, x->wide, x->second_sum + c * u);
  for (int64_t k = 0; k < n; k++) {
    memcpy(e + k * x->narrow, x->e + (r + k) * u, u * sizeof(REAL));
    memcpy(e_dot + k * x->narrow, x->e_dot + (r + k) * u, u * sizeof(REAL));
  }
  add_products(n, w, u, a_bar_dot, x->wide, e, x->narrow, x->first_sum);
  below(x, r, n, a_bar_dot);
}

/* ---- three-body terms t = W q for n near edges from k on ---- */

INLINE void opening(const Arrays *x, int64_t n, const REAL *q, REAL *t) {
  product(n, 2 * x->units, x->size, q, x->size, 1, x->gate_t, x->wide, NULL, 0, t, x->wide);
}

INLINE void closing(const Arrays *x, int64_t k, int64_t n, const REAL *t_bar) {
  product(n, x->size, 2 * x->units, t_bar, x->wide, 1, x->gate, x->size, NULL, 0, x->q_bar + k * x->size, x->size);
}

static void three_body(int64_t k, int64_t n, const Arrays *x, REAL *t) {
  opening(x, n, x->q + k * x->size, t);
  for (int64_t m = 0; m < n; m++) {
    REAL *target = x->target + place(x, k + m);
    gate(x, 0, t + m * x->wide, target, target);
  }
}

static void three_body_adjoint(int64_t k, int64_t n, const Arrays *x, REAL *t) {
  REAL *t_bar = t + BLOCK * x->wide;
  opening(x, n, x->q + k * x->size, t);
  for (int64_t m = 0; m < n; m++) gate_adjoint(x, k + m, t + m * x->wide, t_bar + m * x->wide);
  closing(x, k, n, t_bar);
}

static void three_body_tangent(int64_t k, int64_t n, const Arrays *x, REAL *t) {
  REAL *t_dot = t + BLOCK * x->wide;
  opening(x, n, x->q + k * x->size, t);
  opening(x, n, x->q_dot + k * x->size, t_dot);
  for (int64_t m = 0; m < n; m++) {
    REAL *target = x->target + place(x, k + m);
    gate_tangent(x, 0, t + m * x->wide, t_dot + m * x->wide, target, target);
  }
}

static void three_body_second(int64_t k, int64_t n, const Arrays *x, REAL *t) {
  const int64_t size = n * x->wide, values = n * x->size;
  REAL *t_dot = t + size, *t_bar_dot = t_dot + size, *t_bar = t_bar_dot + size, *q = t_bar + size;
  memcpy(q, x->q + k * x->size, values * sizeof(REAL));
  memcpy(q + values, x->q_dot + k * x->size, values * sizeof(REAL));
  opening(x, n, q, t);
  opening(x, n, q + values, t_dot);
  for (int64_t m = 0; m < n; m++) {
    const int64_t to = m * x->wide;
    gate_second(x, k + m, t + to, t_dot + to, t_bar + to, t_bar_dot + to);
  }
  add_products(n, 2 * x->units, x->size, t_bar_dot, x->wide, q, x->size, x->gate_sum);
  closing(x, k, n, t_bar_dot);
}

/* ---- a block of the network: three-body terms, edges, atoms ---- */

/* Edges of the same atom stay with one thread. */
INLINE void own_rows(const Arrays *atom, int64_t *first, int64_t *last) {
  while (*first > 0 && *first < atom->edges && atom->at[*first] == atom->at[*first - 1]) ++*first;
  while (*last > 0 && *last < atom->edges && atom->at[*last] == atom->at[*last - 1]) ++*last;
}

/* Place among the near edges of the first that is not before this edge. */
INLINE int64_t near_from(const Arrays *three, int64_t edge) {
  int64_t low = 0, high = three->near;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (three->at[middle] < edge) low = middle + 1;
    else high = middle;
  }
  return low;
}

#define EACH_BLOCK                                                                                   \
  for (int64_t r = first, n, near, k = near_from(three, first); r < last; r += n, k += near)         \
    if (n = least(BLOCK, last - r), near = near_from(three, r + n) - k, 1)

INLINE void copy_edges(const Arrays *x, int64_t r, int64_t n) {
  memcpy(x->target + r * x->units, x->source + r * x->units, n * x->units * sizeof(REAL));
}

void block(int64_t first, int64_t last, const Arrays *three, const Arrays *edge, const Arrays *atom, REAL *scratch) {
  own_rows(atom, &first, &last);
  EACH_BLOCK {
    copy_edges(three, r, n);
    three_body(k, near, three, scratch);
    perceptron(r, n, edge, scratch);
    perceptron(r, n, atom, scratch);
  }
}

void block_adjoint(int64_t first, int64_t last, const Arrays *three, const Arrays *edge, const Arrays *atom,
                   REAL *scratch) {
  EACH_BLOCK {
    perceptron_adjoint(r, n, atom, scratch);
    perceptron_adjoint(r, n, edge, scratch);
    three_body_adjoint(k, near, three, scratch);
  }
}

void block_tangent(int64_t first, int64_t last, const Arrays *three, const Arrays *edge, const Arrays *atom,
                   REAL *scratch) {
  own_rows(atom, &first, &last);
  EACH_BLOCK {
    copy_edges(three, r, n);
    three_body_tangent(k, near, three, scratch);
    perceptron_tangent(r, n, edge, scratch);
    perceptron_tangent(r, n, atom, scratch);
  }
}

void block_second(int64_t first, int64_t last, const Arrays *three, const Arrays *edge, const Arrays *atom,
                  REAL *scratch) {
  EACH_BLOCK {
    perceptron_second(r, n, atom, scratch);
    perceptron_second(r, n, edge, scratch);
    three_body_second(k, near, three, scratch);
  }
}

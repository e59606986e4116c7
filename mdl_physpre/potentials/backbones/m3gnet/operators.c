/* The operators of operators.py, LENGTH edges at a time from the three-body terms to the atoms, so that what passes
   from one matrix product to the next stays in the processor's cache.

   Compiled with -DREAL=float -DSINGLE or with -DREAL=double; "units" is a whole number of vectors. Each function works
   on the edges of the atoms first_atom <= i < last_atom, and has scratch for six arrays of LENGTH rows. Edges are
   sorted by their centre. Sums over neighbours and gradients of parameters go to arrays that belong to one thread.
*/

#include "rows.h"

#define LENGTH 64

const int64_t length = LENGTH;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Place among the near edges of the first that is not before this edge */
INLINE int64_t near_from(const Block *x, int64_t edge) {
  int64_t low = 0, high = x->n_near;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (x->near[middle] < edge) low = middle + 1;
    else high = middle;
  }
  return low;
}

/* n edges from r on, of which those from the place "first" of the near edges on, "near" of them, have three-body terms */
#define EACH_PIECE                                                                                     \
  for (int64_t r = x->start[first_atom], last = x->start[last_atom], first = near_from(x, r), n, near; \
       r < last; r += n, first += near)                                                                \
    if (n = least(LENGTH, last - r), near = near_from(x, r + n) - first, 1)

/* Arrays in the scratch, one after the other */
#define WIDE (LENGTH * x->wide)
#define NARROW (LENGTH * x->narrow)

/* Each half of the rows of b times its own matrix */
INLINE void halves(const Block *x, int64_t n, const REAL *b, const REAL *matrices, const REAL *bias, REAL *out) {
  for (int64_t half = 0; half < 2; half++)
    product(n, x->units, x->units, b + half * x->units, x->wide, 1, matrices + half * x->units * x->narrow, x->narrow,
            bias ? bias + half * x->units : bias, 0, out + half * x->units, x->wide);
}

/* sums += a^T b over n edges */
INLINE void add_products(int64_t n, int64_t columns_a, int64_t columns_b, const REAL *a, int64_t a_row, const REAL *b,
                         int64_t b_row, REAL *sums) {
  product(columns_a, columns_b, n, a, 1, a_row, b, b_row, sums, columns_b, sums, columns_b);
}

/* Gradients of both layers' matrices of the perceptron k, from adjoints of y and a, or from those and rates of h and e */
INLINE void add_weights(const Block *x, int k, int64_t n, const REAL *y_bar, const REAL *h, const REAL *a_bar,
                        const REAL *e) {
  const int64_t u = x->units;
  for (int64_t c = 0; c < 2 * u; c += u)
    add_products(n, u, u, y_bar + c, x->wide, h + c, x->wide, x->second_sum + (2 * k * u + c) * u);
  add_products(n, 2 * u, u, a_bar, x->wide, e, x->narrow, x->first_sum + 2 * k * u * u);
}

INLINE void copy(const Block *x, int64_t n, const REAL *from, int64_t from_row, REAL *to, int64_t to_row) {
  for (int64_t m = 0; m < n; m++) memcpy(to + m * to_row, from + m * from_row, x->units * sizeof(REAL));
}

/* t = W q of the three-body terms */
INLINE void opening(const Block *x, int64_t near, const REAL *q, REAL *t) {
  product(near, 2 * x->units, x->size, q, x->size, 1, x->gate_t, x->wide, NULL, 0, t, x->wide);
}

INLINE void closing(const Block *x, int64_t near, const REAL *t_bar, REAL *q_bar) {
  product(near, x->size, 2 * x->units, t_bar, x->wide, 1, x->gate, x->size, NULL, 0, q_bar, x->size);
}

/* Edges of the piece with their three-body terms, whose t is kept */
static void three_body(const Block *x, int64_t r, int64_t n, int64_t first, int64_t near, REAL *e, REAL *t) {
  if (x->e) copy(x, n, x->e + r * x->units, x->units, e, x->narrow);
  else
    for (int64_t m = 0; m < n; m++) gate(x, ENCODER, r + m, NULL, NULL, e + m * x->narrow);
  opening(x, near, x->q + first * x->size, t);
  for (int64_t m = 0; m < near; m++) {
    REAL *target = e + (x->near[first + m] - r) * x->narrow;
    gate(x, THREE, 0, t + m * x->wide, target, target);
  }
}

INLINE void perceptron(const Block *x, const int k, int64_t r, int64_t n, const REAL *e, int64_t e_row, REAL *h) {
  const int64_t u = x->units;
  REAL *y = h + WIDE;
  product(n, 2 * u, u, e, e_row, 1, x->first_t + k * u * x->wide, x->wide, NULL, 0, h, x->wide);
  for (int64_t m = 0; m < n; m++) hidden(x, k, r + m, h + m * x->wide);
  halves(x, n, h, x->second_t + 2 * k * u * x->narrow, x->bias + 2 * k * u, y);
  for (int64_t m = 0; m < n; m++) {
    REAL *row = y + m * x->wide, *kept = x->kept + KEPT(x, r + m, 2 * k + 1);
    REAL *target = k == EDGE ? x->edge + (r + m) * u : x->message + x->i[r + m] * u;
    for (int64_t c = 0; c < 2 * u; c += W) stream(kept + c, load(row + c));
    gate(x, k, r + m, row, k == EDGE ? e + m * e_row : target, target);
  }
}

void block(const Block *x, int64_t first_atom, int64_t last_atom, REAL *e) {
  EACH_PIECE {
    three_body(x, r, n, first, near, e, e + NARROW);
    perceptron(x, EDGE, r, n, e, x->narrow, e + NARROW);
    perceptron(x, ATOM, r, n, x->edge + r * x->units, x->units, e + NARROW);
  }
}

/* From the adjoint of the target that of e, added to "above": with gradients in geometry, or in parameters, for which
   e has the stride "narrow" */
INLINE void perceptron_backward(const Block *x, const int k, int64_t r, int64_t n, const int parameters,
                                const REAL *bar, int64_t bar_row, const REAL *e, const REAL *above, int64_t above_row,
                                REAL *below, int64_t below_row, REAL *y_bar) {
  const int64_t u = x->units;
  REAL *a_bar = y_bar + WIDE, *h = a_bar + WIDE;
  for (int64_t m = 0; m < n; m++) {
    const int64_t kept = KEPT(x, r + m, 2 * k + 1);
    const REAL *y_ext = parameters && x->kept_bar ? x->kept_bar + kept : NULL;
    const REAL *t_bar = k == EDGE ? bar + m * bar_row : bar + x->i[r + m] * u;
    gate_backward(x, k, r + m, parameters, t_bar, x->kept + kept, y_ext, y_bar + m * x->wide);
  }
  halves(x, n, y_bar, x->second + 2 * k * u * x->narrow, NULL, a_bar);
  for (int64_t m = 0; m < n; m++)
    hidden_backward(x, k, r + m, parameters, a_bar + m * x->wide, parameters ? h + m * x->wide : NULL);
  if (parameters) add_weights(x, k, n, y_bar, h, a_bar, e);
  product(n, u, 2 * u, a_bar, x->wide, 1, x->first + 2 * k * u * x->narrow, x->narrow, above, above_row, below,
          below_row);
}

INLINE void backward(const Block *x, int64_t first_atom, int64_t last_atom, const int parameters, REAL *e) {
  const int64_t u = x->units;
  REAL *e1 = e, *e2 = e1 + NARROW, *scratch = e2 + 2 * NARROW;
  EACH_PIECE {
    REAL *e2_bar = x->bars ? x->bars + E2_BAR(x, r) : e2 + NARROW, *e1_bar = x->e_bar + r * u, *t = scratch;
    const int64_t e2_row = x->bars ? u : x->narrow;
    if (parameters) {
      three_body(x, r, n, first, near, e1, scratch);
      copy(x, n, x->edge + r * u, u, e2, x->narrow);
    }
    perceptron_backward(x, ATOM, r, n, parameters, x->message_bar, 0, e2, x->edge_bar ? x->edge_bar + r * u : NULL, u,
                        e2_bar, e2_row, scratch);
    perceptron_backward(x, EDGE, r, n, parameters, e2_bar, e2_row, e1, e2_bar, e2_row, e1_bar, u, scratch);
    const REAL *q = x->q + first * x->size;
    opening(x, near, q, t);
    for (int64_t m = 0; m < near; m++)
      gate_backward(x, THREE, 0, parameters, x->e_bar + x->near[first + m] * u, t + m * x->wide, NULL, t + m * x->wide);
    if (parameters) add_products(near, 2 * u, x->size, t, x->wide, q, x->size, x->gate_sum);
    closing(x, near, t, x->q_bar + first * x->size);
    if (!x->e)
      for (int64_t m = 0; m < n; m++) gate_backward(x, ENCODER, r + m, parameters, e1_bar + m * u, NULL, NULL, NULL);
  }
}

void by_geometry(const Block *x, int64_t first_atom, int64_t last_atom, REAL *scratch) {
  backward(x, first_atom, last_atom, 0, scratch);
}

void by_parameters(const Block *x, int64_t first_atom, int64_t last_atom, REAL *scratch) {
  backward(x, first_atom, last_atom, 1, scratch);
}

/* From the rate of e (stride "narrow") that of the target, which edges have in e_next */
INLINE void perceptron_second(const Block *x, const int k, int64_t r, int64_t n, const REAL *e_dot, REAL *e_next,
                              REAL *dot) {
  const int64_t u = x->units;
  REAL *a_bar = dot + WIDE, *y_dot = a_bar + WIDE;
  product(n, 2 * u, u, e_dot, x->narrow, 1, x->first_t + k * u * x->wide, x->wide, NULL, 0, dot, x->wide);
  for (int64_t m = 0; m < n; m++) hidden_second(x, k, r + m, dot + m * x->wide, a_bar + m * x->wide);
  halves(x, n, dot, x->second_t + 2 * k * u * x->narrow, NULL, y_dot);
  for (int64_t m = 0; m < n; m++) {
    const int64_t kept = KEPT(x, r + m, 2 * k + 1), atom = x->i[r + m] * u;
    const REAL *bar = k == EDGE ? x->bars + E2_BAR(x, r + m) : x->message_bar + atom;
    REAL *row = y_dot + m * x->wide, *target = k == EDGE ? e_next + m * x->narrow : x->message_dot + atom;
    gate_second(x, k, r + m, bar, x->kept + kept, row, k == EDGE ? e_dot + m * x->narrow : target, target, row,
                x->kept_ext + kept);
  }
  add_weights(x, k, n, y_dot, dot, a_bar, e_dot);
}

void second(const Block *x, int64_t first_atom, int64_t last_atom, REAL *e1_dot) {
  const int64_t u = x->units;
  REAL *e2_dot = e1_dot + NARROW, *t = e2_dot + NARROW, *t_dot = t + WIDE, *t_ext = t_dot + WIDE;
  EACH_PIECE {
    if (x->e_dot) copy(x, n, x->e_dot + r * u, u, e1_dot, x->narrow);
    else if (x->e) memset(e1_dot, 0, NARROW * sizeof(REAL));
    else
      for (int64_t m = 0; m < n; m++)
        gate_second(x, ENCODER, r + m, x->e_bar + (r + m) * u, NULL, NULL, NULL, e1_dot + m * x->narrow, NULL, NULL);
    const REAL *q = x->q + first * x->size, *q_dot = x->q_dot + first * x->size;
    opening(x, near, q, t);
    opening(x, near, q_dot, t_dot);
    for (int64_t m = 0; m < near; m++) {
      REAL *row = t_dot + m * x->wide, *target = e1_dot + (x->near[first + m] - r) * x->narrow;
      gate_second(x, THREE, 0, x->e_bar + x->near[first + m] * u, t + m * x->wide, row, target, target, row,
                  t_ext + m * x->wide);
    }
    add_products(near, 2 * u, x->size, t_dot, x->wide, q_dot, x->size, x->gate_sum);
    add_products(near, 2 * u, x->size, t_ext, x->wide, q, x->size, x->gate_sum);
    closing(x, near, t_ext, x->q_ext + first * x->size);
    perceptron_second(x, EDGE, r, n, e1_dot, e2_dot, t);
    perceptron_second(x, ATOM, r, n, e2_dot, NULL, t);
    copy(x, n, e2_dot, x->narrow, x->edge_dot + r * u, u);
  }
}

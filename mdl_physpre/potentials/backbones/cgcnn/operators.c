/* The sums over the edges of one convolution, their derivatives and those of the derivatives, each for the atoms
   first_atom <= i < last_atom.

   Compiled with -DREAL=float -DSINGLE or with -DREAL=double. A vector holds W values of neighbouring channels; channel
   arrays are padded to whole vectors ("stride" values for each node). Node arrays are (2, n_atoms, stride): the sigmoid
   channel, then the softplus channel with its sign turned. Edges are sorted by centre: those of atom i are
   start[i] <= e < start[i + 1]. Sums over neighbours go to arrays that belong to one thread.

   C phi(d) is a polynomial in -1 <= t <= 1 on each of n_pieces equal pieces of the cutoff, with the coefficients
   (2, n_pieces, TERMS, stride); the edges of an atom are visited piece by piece ("order"), so that a coefficient once
   loaded serves several edges.
*/

#include "vectors.h"

#define GROUP 4  /* edges worked on together */
#define BLOCK 64 /* edges whose values stay in the nearest cache for all channels */
#ifdef SINGLE
#define TERMS 8
#else
#define TERMS 16
#endif

/* A loop that is written out, so that what it works on stays in registers */
#define EACH(m, n) _Pragma("GCC unroll 8") for (int m = 0; m < n; m++)

const int64_t terms = TERMS;

#ifdef SINGLE
/* log(1 + z) for 0 <= z <= 1, relative error 3e-8 before rounding */
INLINE vec log_one_plus(vec z) {
  vec p = all(5.232692686e-3f);
  p = p * z - 2.950523245e-2f;
  p = p * z + 7.822594156e-2f;
  p = p * z - 1.366324492e-1f;
  p = p * z + 1.910600635e-1f;
  p = p * z - 2.484298211e-1f;
  p = p * z + 3.331909679e-1f;
  p = p * z - 4.999949314e-1f;
  p = p * z + 9.999999699e-1f;
  return p * z;
}

/* q = sigmoid(a), u = sigmoid(b), g = q softplus(-b) */
INLINE void gate(vec a, vec b, vec *q, vec *u, vec *g) {
  vec x = 1.0f + exponential(at_most(-a, 43.0f)); /* 43: the product below stays finite */
  vec zy = exponential(-absolute(b)), y = 1.0f + zy;
  vec r = reciprocal(x * y);
  *q = y * r;
  *u = where_positive(b, x, x * zy) * r;
  *g = *q * (log_one_plus(zy) - at_most(b, 0.0f));
}
#else
INLINE void gate(vec a, vec b, vec *q, vec *u, vec *g) {
  for (int k = 0; k < W; k++) {
    REAL zx = exp(-fabs(a[k])), zy = exp(-fabs(b[k]));
    (*q)[k] = (a[k] >= 0 ? 1 : zx) / (1 + zx);
    (*u)[k] = (b[k] >= 0 ? 1 : zy) / (1 + zy);
    (*g)[k] = (*q)[k] * (log1p(zy) + (b[k] < 0 ? -b[k] : 0));
  }
}
#endif

/* What every sweep needs */
typedef struct {
  int64_t n_atoms, n_pieces, stride;
  double pieces_per_length;
  const int64_t *start, *order, *neighbour;
  const REAL *distance, *weight; /* (E) d and w */
  const REAL *centre_sum, *neighbour_sum, *coefficient;
} Layer;

INLINE int64_t piece_of(double d, double pieces_per_length, int64_t n_pieces) {
  int64_t piece = (int64_t)(d * pieces_per_length);
  return piece < n_pieces ? piece : n_pieces - 1;
}

/* order: the edges of each atom piece by piece; count: n_pieces + 1 values to work with */
void arrange(int64_t n_atoms, int64_t n_pieces, double pieces_per_length, const int64_t *start, const REAL *distance,
             int64_t *order, int64_t *count) {
  for (int64_t i = 0; i < n_atoms; i++) {
    memset(count, 0, (n_pieces + 1) * sizeof *count);
    for (int64_t e = start[i]; e < start[i + 1]; e++) count[piece_of(distance[e], pieces_per_length, n_pieces) + 1]++;
    for (int64_t p = 0; p < n_pieces; p++) count[p + 1] += count[p];
    for (int64_t e = start[i]; e < start[i + 1]; e++)
      order[start[i] + count[piece_of(distance[e], pieces_per_length, n_pieces)]++] = e;
  }
}

/* Edges of one atom in one piece */
typedef struct {
  int n;
  int64_t edge[BLOCK], there[BLOCK]; /* there: where the neighbour's channels begin */
  REAL t[BLOCK], weight[BLOCK];
  const REAL *coefficient;
} Run;

/* The run that begins at the place "first" of the order, and where the next begins */
INLINE int64_t take_run(const Layer *l, int64_t first, int64_t end, Run *run) {
  const int64_t piece = piece_of(l->distance[l->order[first]], l->pieces_per_length, l->n_pieces);
  run->coefficient = l->coefficient + piece * TERMS * l->stride;
  for (run->n = 0; first < end && run->n < BLOCK; first++, run->n++) {
    const int64_t e = l->order[first];
    if (piece_of(l->distance[e], l->pieces_per_length, l->n_pieces) != piece) break;
    run->edge[run->n] = e;
    run->there[run->n] = l->neighbour[e] * l->stride;
    run->t[run->n] = (REAL)(2 * (l->distance[e] * l->pieces_per_length - piece) - 1);
    run->weight[run->n] = l->weight[e];
  }
  return first;
}

/* One group of edges at one vector of channels: the sums a, b and, if wanted, d/dt of C phi */
INLINE void sums(const Layer *l, const Run *run, int n, int e, int64_t c, vec own_a, vec own_b, int with_slope, vec *a,
                 vec *b, vec *sa, vec *sb) {
  const REAL *other = l->neighbour_sum + l->n_atoms * l->stride;
  const REAL *ca = run->coefficient + c, *cb = ca + l->n_pieces * TERMS * l->stride;
  vec wa = load(ca + (TERMS - 1) * l->stride), wb = load(cb + (TERMS - 1) * l->stride);
  EACH(m, n) {
    a[m] = wa;
    b[m] = wb;
  }
#pragma GCC unroll 16
  for (int k = TERMS - 2; k >= 0; k--) {
    wa = load(ca + k * l->stride), wb = load(cb + k * l->stride);
    EACH(m, n) {
      REAL t = run->t[e + m];
      if (with_slope && k == TERMS - 2) {
        sa[m] = a[m];
        sb[m] = b[m];
      } else if (with_slope) {
        sa[m] = sa[m] * t + a[m];
        sb[m] = sb[m] * t + b[m];
      }
      a[m] = a[m] * t + wa;
      b[m] = b[m] * t + wb;
    }
  }
  EACH(m, n) {
    a[m] += own_a + load(l->neighbour_sum + run->there[e + m] + c);
    b[m] += own_b + load(other + run->there[e + m] + c);
  }
}

/* The edges of a run in groups */
#define GROUPS(BODY)                                  \
  do {                                                \
    int e = 0;                                        \
    for (; e + GROUP <= run.n; e += GROUP) BODY(GROUP); \
    for (; e < run.n; e++) BODY(1);                   \
  } while (0)

/* m_i = sum_e w_e g_e; message starts from 0 */
void messages(const Layer *l, int64_t first_atom, int64_t last_atom, REAL *message) {
  const int64_t half = l->n_atoms * l->stride;
  Run run;
  for (int64_t i = first_atom; i < last_atom; i++)
    for (int64_t next = l->start[i]; next < l->start[i + 1];) {
      next = take_run(l, next, l->start[i + 1], &run);
      for (int64_t c = 0; c < l->stride; c += W) {
        const int64_t at = i * l->stride + c;
        vec own_a = load(l->centre_sum + at), own_b = load(l->centre_sum + half + at), total = load(message + at);
#define BODY(n)                                             \
  {                                                         \
    vec a[n], b[n], q, u, g;                                \
    sums(l, &run, n, e, c, own_a, own_b, 0, a, b, a, b);    \
    EACH(m, n) {                           \
      gate(a[m], b[m], &q, &u, &g);                         \
      total += g * run.weight[e + m];                       \
    }                                                       \
  }
        GROUPS(BODY);
#undef BODY
        store(message + at, total);
      }
    }
}

/* Powers of t and, where wanted, their derivatives */
INLINE void powers(const Run *run, REAL (*power)[BLOCK], REAL (*slope)[BLOCK]) {
  for (int e = 0; e < run->n; e++) {
    power[0][e] = 1;
    if (slope) slope[0][e] = 0;
    for (int k = 1; k < TERMS; k++) {
      power[k][e] = power[k - 1][e] * run->t[e];
      if (slope) slope[k][e] = k * power[k - 1][e];
    }
  }
}

/* gradient += a power + sa slope, the latter where there is a slope, over the edges of one group; b likewise */
INLINE void add_terms(const Layer *l, int n, int e, const vec *a, const vec *b, REAL (*power)[BLOCK], const vec *sa,
                      const vec *sb, REAL (*slope)[BLOCK], REAL *gradient) {
  for (int k = 0; k < TERMS; k++) {
    REAL *ka = gradient + k * l->stride, *kb = ka + l->n_pieces * TERMS * l->stride;
    vec da = load(ka), db = load(kb);
    EACH(m, n) {
      da += a[m] * power[k][e + m];
      db += b[m] * power[k][e + m];
      if (slope) {
        da += sa[m] * slope[k][e + m];
        db += sb[m] * slope[k][e + m];
      }
    }
    store(ka, da);
    store(kb, db);
  }
}

/* From the adjoint of m those of the sums, and either of d and w or of the coefficients; all are added to what the
   arrays hold */
INLINE void gradient_of(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *adjoint, REAL *centre,
                        REAL *neighbour, REAL *distance, REAL *weight, REAL *gradient, const int geometry) {
  const int64_t half = l->n_atoms * l->stride;
  _Alignas(BYTES) vec to_t[BLOCK], to_weight[BLOCK];
  REAL power[TERMS][BLOCK];
  Run run;
  for (int64_t i = first_atom; i < last_atom; i++)
    for (int64_t next = l->start[i]; next < l->start[i + 1];) {
      next = take_run(l, next, l->start[i + 1], &run);
      if (geometry) {
        memset(to_t, 0, run.n * BYTES);
        memset(to_weight, 0, run.n * BYTES);
      } else
        powers(&run, power, 0);
      for (int64_t c = 0; c < l->stride; c += W) {
        const int64_t at = i * l->stride + c;
        vec own_a = load(l->centre_sum + at), own_b = load(l->centre_sum + half + at), lambda = load(adjoint + at);
        vec total_a = load(centre + at), total_b = load(centre + half + at);
        REAL *of_piece = gradient + (run.coefficient - l->coefficient) + c;
#define BODY(n)                                                                \
  {                                                                            \
    vec a[n], b[n], sa[n], sb[n], q, u, g;                                     \
    sums(l, &run, n, e, c, own_a, own_b, geometry, a, b, sa, sb);              \
    EACH(m, n) {                                                               \
      gate(a[m], b[m], &q, &u, &g);                                            \
      vec scaled = lambda * run.weight[e + m];                                 \
      a[m] = scaled * (g - g * q);                                             \
      b[m] = scaled * (q * u - q);                                             \
      REAL *there = neighbour + run.there[e + m] + c;                          \
      total_a += a[m];                                                         \
      total_b += b[m];                                                         \
      add(there, a[m]);                                                        \
      add(there + half, b[m]);                                                 \
      if (geometry) {                                                          \
        to_t[e + m] += a[m] * sa[m] + b[m] * sb[m];                            \
        to_weight[e + m] += lambda * g;                                        \
      }                                                                        \
    }                                                                          \
    if (!geometry) add_terms(l, n, e, a, b, power, 0, 0, 0, of_piece);         \
  }
        GROUPS(BODY);
#undef BODY
        store(centre + at, total_a);
        store(centre + half + at, total_b);
      }
      for (int e = 0; geometry && e < run.n; e++) {
        distance[run.edge[e]] += 2 * l->pieces_per_length * sum(to_t[e]);
        weight[run.edge[e]] += sum(to_weight[e]);
      }
    }
}

void by_geometry(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *adjoint, REAL *centre,
                 REAL *neighbour, REAL *distance, REAL *weight) {
  gradient_of(l, first_atom, last_atom, adjoint, centre, neighbour, distance, weight, 0, 1);
}

void by_parameters(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *adjoint, REAL *centre,
                   REAL *neighbour, REAL *gradient) {
  gradient_of(l, first_atom, last_atom, adjoint, centre, neighbour, 0, 0, gradient, 0);
}

/* The rate of m for rates of the sums' node parts, of d and of w (message starts from 0), and the gradients of
   adjoint . rate in the node parts and in the coefficients, which are added to what the arrays hold */
void second(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *adjoint, const REAL *centre_dot,
            const REAL *neighbour_dot, const REAL *distance_dot, const REAL *weight_dot, REAL *message, REAL *centre,
            REAL *neighbour, REAL *gradient) {
  const int64_t half = l->n_atoms * l->stride;
  REAL t_dot[BLOCK], w_dot[BLOCK], power[TERMS][BLOCK], slope[TERMS][BLOCK];
  Run run;
  for (int64_t i = first_atom; i < last_atom; i++)
    for (int64_t next = l->start[i]; next < l->start[i + 1];) {
      next = take_run(l, next, l->start[i + 1], &run);
      powers(&run, power, slope);
      for (int e = 0; e < run.n; e++) {
        t_dot[e] = 2 * l->pieces_per_length * distance_dot[run.edge[e]];
        w_dot[e] = weight_dot[run.edge[e]];
      }
      for (int64_t c = 0; c < l->stride; c += W) {
        const int64_t at = i * l->stride + c;
        vec own_a = load(l->centre_sum + at), own_b = load(l->centre_sum + half + at);
        vec dot_a = load(centre_dot + at), dot_b = load(centre_dot + half + at);
        vec lambda = load(adjoint + at), total = load(message + at);
        vec total_a = load(centre + at), total_b = load(centre + half + at);
        REAL *of_piece = gradient + (run.coefficient - l->coefficient) + c;
#define BODY(n)                                                                \
  {                                                                            \
    vec a[n], b[n], sa[n], sb[n], q, u, g;                                     \
    sums(l, &run, n, e, c, own_a, own_b, 1, a, b, sa, sb);                     \
    EACH(m, n) {                                                               \
      gate(a[m], b[m], &q, &u, &g);                                            \
      const REAL *moved = neighbour_dot + run.there[e + m] + c;                \
      vec ga = g - g * q, gb = q * u - q;                                      \
      vec ma = dot_a + load(moved) + sa[m] * t_dot[e + m];                     \
      vec mb = dot_b + load(moved + half) + sb[m] * t_dot[e + m];              \
      vec x = ga * ma, y = gb * mb, z = gb * ma, g_dot = x + y;                \
      vec ta = g_dot - q * (g_dot + x), tb = z - q * z - u * y;                \
      vec scaled = lambda * run.weight[e + m], scaled_dot = lambda * w_dot[e + m]; \
      total += g * w_dot[e + m] + g_dot * run.weight[e + m];                   \
      a[m] = ta * scaled + ga * scaled_dot;                                    \
      b[m] = tb * scaled + gb * scaled_dot;                                    \
      sa[m] = ga * scaled * t_dot[e + m];                                      \
      sb[m] = gb * scaled * t_dot[e + m];                                      \
      REAL *there = neighbour + run.there[e + m] + c;                          \
      total_a += a[m];                                                         \
      total_b += b[m];                                                         \
      add(there, a[m]);                                                        \
      add(there + half, b[m]);                                                 \
    }                                                                          \
    add_terms(l, n, e, a, b, power, sa, sb, slope, of_piece);                  \
  }
        GROUPS(BODY);
#undef BODY
        store(message + at, total);
        store(centre + at, total_a);
        store(centre + half + at, total_b);
      }
    }
}

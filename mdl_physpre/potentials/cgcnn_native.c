/* The four sweeps of cgcnn_edges.py over the edges of one convolution, each for the atoms first_atom <= i < last_atom.

   Compiled with -DREAL=float -DSINGLE or with -DREAL=double. A vector holds W values of neighbouring channels; channel
   arrays are padded to whole vectors ("stride" values for each node). Node arrays are (2, n_atoms, stride): the sigmoid
   channel, then the softplus channel with its sign turned; the edge weight is (2, K, stride). Edges are sorted by
   centre: those of atom i are start[i] <= e < start[i + 1]. Sums over neighbours go to arrays that belong to one thread.
*/

#include "native_vectors.h"

#define GROUP 4 /* edges worked on together, so that a coefficient once loaded serves all of them */

#ifdef SINGLE
/* log(1 + z) for 0 <= z <= 1, relative error 5e-9 before rounding */
INLINE vec log_one_plus(vec z) {
  vec p = all(-3.256378473e-3f);
  p = p * z + 1.990716093e-2f;
  p = p * z - 5.706420076e-2f;
  p = p * z + 1.061426469e-1f;
  p = p * z - 1.531186310e-1f;
  p = p * z + 1.967811726e-1f;
  p = p * z - 2.495455887e-1f;
  p = p * z + 3.333000404e-1f;
  p = p * z - 4.999990399e-1f;
  p = p * z + 9.999999954e-1f;
  return p * z;
}

/* q = sigmoid(a), u = sigmoid(b), g = q softplus(-b) */
INLINE void gate(vec a, vec b, vec *q, vec *u, vec *g) {
  const ivec magnitude = (ivec){0} + 0x7fffffff;
  const vec one = all(1.0f), most = all(87.0f);
  vec x = (vec)((ivec)a & magnitude), y = (vec)((ivec)b & magnitude);
  vec zx = exponential(-choose(x < most, x, most)), zy = exponential(-choose(y < most, y, most));
  vec r = reciprocal((one + zx) * (one + zy));
  *q = choose(a >= 0.0f, one, zx) * ((one + zy) * r);
  *u = choose(b >= 0.0f, one, zy) * ((one + zx) * r);
  *g = *q * (log_one_plus(zy) + choose(b < 0.0f, -b, all(0.0f)));
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
  int64_t n_atoms, n_basis, stride;
  const int64_t *start, *neighbour;
  const REAL *basis, *slope;          /* (E, K) phi and its derivative */
  const REAL *weight;                 /* (E) */
  const REAL *centre_sum, *neighbour_sum, *edge_weight;
} Layer;

/* One group of edges at one vector of channels: the sums a, b and, if wanted, C phi' */
INLINE void sums(const Layer *l, int n, int64_t e, int64_t c, vec own_a, vec own_b, int with_slope, vec *a, vec *b,
                 vec *sa, vec *sb) {
  const REAL *other = l->neighbour_sum + l->n_atoms * l->stride;
  const REAL *ca = l->edge_weight + c, *cb = l->edge_weight + l->n_basis * l->stride + c;
  for (int m = 0; m < n; m++) {
    int64_t at = l->neighbour[e + m] * l->stride + c;
    a[m] = own_a + load(l->neighbour_sum + at);
    b[m] = own_b + load(other + at);
    if (with_slope) sa[m] = sb[m] = all(0);
  }
  for (int64_t k = 0; k < l->n_basis; k++) {
    vec wa = load(ca + k * l->stride), wb = load(cb + k * l->stride);
    for (int m = 0; m < n; m++) {
      REAL phi = l->basis[(e + m) * l->n_basis + k];
      a[m] += wa * phi;
      b[m] += wb * phi;
      if (with_slope) {
        REAL psi = l->slope[(e + m) * l->n_basis + k];
        sa[m] += wa * psi;
        sb[m] += wb * psi;
      }
    }
  }
}

#define GROUPS(BODY)                                                  \
  do {                                                                \
    int64_t e = l->start[i];                                          \
    for (; e + GROUP <= l->start[i + 1]; e += GROUP) BODY(GROUP);     \
    for (; e < l->start[i + 1]; e++) BODY(1);                         \
  } while (0)

/* m_i = sum_e w_e g_e */
void energies(const Layer *l, int64_t first_atom, int64_t last_atom, REAL *message) {
  const int64_t half = l->n_atoms * l->stride;
  for (int64_t i = first_atom; i < last_atom; i++)
    for (int64_t c = 0; c < l->stride; c += W) {
      vec own_a = load(l->centre_sum + i * l->stride + c), own_b = load(l->centre_sum + half + i * l->stride + c);
      vec total = all(0);
#define BODY(n)                                                       \
  {                                                                   \
    vec a[n], b[n], q, u, g;                                          \
    sums(l, n, e, c, own_a, own_b, 0, a, b, a, b);                    \
    for (int m = 0; m < n; m++) {                                     \
      gate(a[m], b[m], &q, &u, &g);                                   \
      total += g * l->weight[e + m];                                  \
    }                                                                 \
  }
      GROUPS(BODY);
#undef BODY
      store(message + i * l->stride + c, total);
    }
}

/* Adjoints of the sums and of d and w; edge_distance and edge_weight hold one vector for each edge of an atom */
void adjoints(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *adjoint, REAL *centre, REAL *neighbour,
              REAL *distance, REAL *weight, REAL *edge_distance, REAL *edge_weight) {
  const int64_t half = l->n_atoms * l->stride;
  for (int64_t i = first_atom; i < last_atom; i++) {
    const int64_t begin = l->start[i], count = l->start[i + 1] - begin;
    memset(edge_distance, 0, count * BYTES);
    memset(edge_weight, 0, count * BYTES);
    for (int64_t c = 0; c < l->stride; c += W) {
      const int64_t at = i * l->stride + c;
      vec own_a = load(l->centre_sum + at), own_b = load(l->centre_sum + half + at), lambda = load(adjoint + at);
      vec total_a = all(0), total_b = all(0);
#define BODY(n)                                                       \
  {                                                                   \
    vec a[n], b[n], sa[n], sb[n], q, u, g;                            \
    sums(l, n, e, c, own_a, own_b, 1, a, b, sa, sb);                  \
    for (int m = 0; m < n; m++) {                                     \
      gate(a[m], b[m], &q, &u, &g);                                   \
      vec scaled = lambda * l->weight[e + m];                         \
      vec la = scaled * (g - g * q), lb = scaled * (q * u - q);       \
      REAL *there = neighbour + l->neighbour[e + m] * l->stride + c;  \
      total_a += la;                                                  \
      total_b += lb;                                                  \
      store(there, load(there) + la);                                 \
      store(there + half, load(there + half) + lb);                   \
      REAL *d = edge_distance + (e + m - begin) * W, *w = edge_weight + (e + m - begin) * W; \
      store(d, load(d) + la * sa[m] + lb * sb[m]);                    \
      store(w, load(w) + lambda * g);                                 \
    }                                                                 \
  }
      GROUPS(BODY);
#undef BODY
      store(centre + at, total_a);
      store(centre + half + at, total_b);
    }
    for (int64_t k = 0; k < count; k++) {
      distance[begin + k] += sum(load(edge_distance + k * W));
      weight[begin + k] += sum(load(edge_weight + k * W));
    }
  }
}

/* d/dt of m_i, from those of the sums' node parts, of d and of w */
void tangents(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *centre_dot, const REAL *neighbour_dot,
              const REAL *distance_dot, const REAL *weight_dot, REAL *message) {
  const int64_t half = l->n_atoms * l->stride;
  for (int64_t i = first_atom; i < last_atom; i++)
    for (int64_t c = 0; c < l->stride; c += W) {
      const int64_t at = i * l->stride + c;
      vec own_a = load(l->centre_sum + at), own_b = load(l->centre_sum + half + at);
      vec dot_a = load(centre_dot + at), dot_b = load(centre_dot + half + at), total = all(0);
#define BODY(n)                                                       \
  {                                                                   \
    vec a[n], b[n], sa[n], sb[n], q, u, g;                            \
    sums(l, n, e, c, own_a, own_b, 1, a, b, sa, sb);                  \
    for (int m = 0; m < n; m++) {                                     \
      gate(a[m], b[m], &q, &u, &g);                                   \
      const REAL *there = neighbour_dot + l->neighbour[e + m] * l->stride + c; \
      vec ma = dot_a + load(there) + sa[m] * distance_dot[e + m];     \
      vec mb = dot_b + load(there + half) + sb[m] * distance_dot[e + m]; \
      total += g * weight_dot[e + m];                                 \
      total += ((g - g * q) * ma + (q * u - q) * mb) * l->weight[e + m]; \
    }                                                                 \
  }
      GROUPS(BODY);
#undef BODY
      store(message + at, total);
    }
}

/* d/dt of the adjoints of the sums, and the gradient in the edge weight (2, K, stride) */
void gradients(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *adjoint, const REAL *adjoint_dot,
               const REAL *centre_dot, const REAL *neighbour_dot, const REAL *distance_dot, const REAL *weight_dot,
               REAL *centre, REAL *neighbour, REAL *gradient) {
  const int64_t half = l->n_atoms * l->stride, n_basis = l->n_basis, stride = l->stride;
  for (int64_t i = first_atom; i < last_atom; i++)
    for (int64_t c = 0; c < stride; c += W) {
      const int64_t at = i * stride + c;
      vec own_a = load(l->centre_sum + at), own_b = load(l->centre_sum + half + at);
      vec dot_a = load(centre_dot + at), dot_b = load(centre_dot + half + at);
      vec lambda = load(adjoint + at), lambda_dot = load(adjoint_dot + at);
      vec total_a = all(0), total_b = all(0);
#define BODY(n)                                                       \
  {                                                                   \
    vec a[n], b[n], sa[n], sb[n], q, u, g;                            \
    sums(l, n, e, c, own_a, own_b, 1, a, b, sa, sb);                  \
    for (int m = 0; m < n; m++) {                                     \
      gate(a[m], b[m], &q, &u, &g);                                   \
      const REAL *moved = neighbour_dot + l->neighbour[e + m] * stride + c; \
      vec ga = g - g * q, gb = q * u - q;                             \
      vec ma = dot_a + load(moved) + sa[m] * distance_dot[e + m];     \
      vec mb = dot_b + load(moved + half) + sb[m] * distance_dot[e + m]; \
      vec x = ga * ma, y = gb * mb, z = gb * ma, g_dot = x + y;       \
      vec ta = g_dot - q * (g_dot + x), tb = z - q * z - u * y;       \
      vec scaled = lambda * l->weight[e + m];                         \
      vec scaled_dot = lambda * weight_dot[e + m] + lambda_dot * l->weight[e + m]; \
      a[m] = ta * scaled + ga * scaled_dot;                           \
      b[m] = tb * scaled + gb * scaled_dot;                           \
      sa[m] = ga * scaled * distance_dot[e + m];                      \
      sb[m] = gb * scaled * distance_dot[e + m];                      \
      REAL *there = neighbour + l->neighbour[e + m] * stride + c;     \
      total_a += a[m];                                                \
      total_b += b[m];                                                \
      store(there, load(there) + a[m]);                               \
      store(there + half, load(there + half) + b[m]);                 \
    }                                                                 \
    for (int64_t k = 0; k < n_basis; k++) {                           \
      REAL *ka = gradient + k * stride + c, *kb = ka + n_basis * stride; \
      vec da = load(ka), db = load(kb);                               \
      for (int m = 0; m < n; m++) {                                   \
        REAL phi = l->basis[(e + m) * n_basis + k], psi = l->slope[(e + m) * n_basis + k]; \
        da += a[m] * phi + sa[m] * psi;                               \
        db += b[m] * phi + sb[m] * psi;                               \
      }                                                               \
      store(ka, da);                                                  \
      store(kb, db);                                                  \
    }                                                                 \
  }
      GROUPS(BODY);
#undef BODY
      store(centre + at, total_a);
      store(centre + half + at, total_b);
    }
}

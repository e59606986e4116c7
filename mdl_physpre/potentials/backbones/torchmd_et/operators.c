/* The sums over the edges of a layer of the equivariant transformer, their gradient, and the gradient of that, each for
   the atoms first_atom <= i < last_atom. The equations stand in layers.py and torchmd_et_native.py.

   Compiled with -DREAL=float -DSINGLE or with -DREAL=double. A node array holds n_atoms rows: nodes (5 F) with q, k, v0,
   v1, v2; vec (3 F); x (F). Channels have the head as the fastest index, F is a multiple of the W values of a vector, and
   the number of heads divides W. The table holds rows of 4 F values: the radial functions of k, v0, v1, v2; those of edge
   e are sums of TERMS rows from row[e] on, with the first TERMS values of spline[e], and their derivatives in the distance
   with the next. A negative row marks an edge that counts nothing. Without heads there is no attention, and nodes and table
   are v0 (F) and its radial functions (F). Edges are sorted by centre: those of atom i are start[i] <= e < start[i + 1].
   Sums over neighbours go to arrays of one thread.
*/

#include "vectors.h"

#define TERMS 6
#define MOST 64 /* vectors of channels at most: F <= MOST W */

typedef struct {
  int64_t channels, heads, has_vectors, gives_vectors;
  const int64_t *start, *neighbour, *row;
  const REAL *spline;    /* (E, 2 TERMS) */
  const REAL *direction; /* (E, 3) */
  const REAL *nodes, *vec, *table;
} Layer;

/* sum over the channels of each head, in all places of that head */
INLINE vec fold(vec x, int64_t heads) {
  REAL twice[2 * sizeof(vec) / sizeof(REAL)];
  for (int64_t step = heads; step < W; step *= 2) {
    store(twice, x);
    store(twice + W, x);
    x += load(twice + step);
  }
  return x;
}

INLINE vec lookup(const REAL *table, int64_t rows_apart, const REAL *w) {
  vec x = load(table) * w[0];
  for (int n = 1; n < TERMS; n++) x += load(table + n * rows_apart) * w[n];
  return x;
}

/* value with the weights w and derivative with the weights dw */
INLINE void lookup2(const REAL *table, int64_t rows_apart, const REAL *w, const REAL *dw, vec *x, vec *dx) {
  vec t = load(table);
  *x = t * w[0];
  *dx = t * dw[0];
  for (int n = 1; n < TERMS; n++) {
    t = load(table + n * rows_apart);
    *x += t * w[n];
    *dx += t * dw[n];
  }
}

INLINE void spread(REAL *table, int64_t rows_apart, const REAL *w, vec x) {
  for (int n = 0; n < TERMS; n++) add(table + n * rows_apart, x * w[n]);
}

INLINE void spread2(REAL *table, int64_t rows_apart, const REAL *w, const REAL *dw, vec x, vec dx) {
  for (int n = 0; n < TERMS; n++) add(table + n * rows_apart, x * w[n] + dx * dw[n]);
}

/* The adjoint x of a radial function goes to the distance, which its derivative dx is taken in, or to the table */
INLINE void give(const int geometry, vec x, vec dx, vec *by_distance, REAL *table, int64_t rows_apart, const REAL *w) {
  if (geometry)
    *by_distance += x * dx;
  else
    spread(table, rows_apart, w, x);
}

/* F, values of a node, values of a row, and the places of v0 in both */
#define SIZES \
  const int64_t F = l->channels, S = attends ? 5 * F : F, R = attends ? 4 * F : F, V = attends ? 2 * F : 0, \
                T = attends ? F : 0

/* What belongs to the edge e from atom i to atom j; the next edge where it counts nothing */
#define EDGE                                                                                       \
  if (l->row[e] < 0) continue;                                                                     \
  const int64_t j = l->neighbour[e];                                                               \
  const REAL *k = l->nodes + j * S + F, *v = l->nodes + j * S + V, *u = l->direction + 3 * e;      \
  const REAL *vj = in ? l->vec + j * 3 * F : 0;                                                    \
  const REAL *w = l->spline + 2 * TERMS * e, *t = l->table + l->row[e] * R, *t0 = t + T

/* x (N, F) and, if wanted, out (N, 3, F) */
INLINE void sums_of(const Layer *l, int64_t first_atom, int64_t last_atom, REAL *x, REAL *out, const int attends,
                    const int in, const int gives) {
  SIZES;
  for (int64_t i = first_atom; i < last_atom; i++) {
    const REAL *q = l->nodes + i * S;
    REAL *xi = x + i * F, *oi = gives ? out + i * 3 * F : 0;
    memset(xi, 0, F * sizeof(REAL));
    if (gives) memset(oi, 0, 3 * F * sizeof(REAL));
    for (int64_t e = l->start[i]; e < l->start[i + 1]; e++) {
      EDGE;
      vec s = all(0), a = all(1), da, dda;
      if (attends) {
        for (int64_t c = 0; c < F; c += W) s += load(q + c) * load(k + c) * lookup(t + c, R, w);
        silu(fold(s, l->heads), &a, &da, &dda);
      }
      for (int64_t c = 0; c < F; c += W) {
        add(xi + c, load(v + c) * lookup(t0 + c, R, w) * a);
        if (gives) {
          vec across = load(v + 2 * F + c) * lookup(t + 3 * F + c, R, w), along = all(0);
          if (in) along = load(v + F + c) * lookup(t + 2 * F + c, R, w);
          for (int d = 0; d < 3; d++) {
            vec m = across * u[d];
            if (in) m += along * load(vj + d * F + c);
            add(oi + d * F + c, m);
          }
        }
      }
    }
  }
}

/* From the adjoints gx (N, F) and gout (N, 3, F) of the sums, those of nodes and vec (added to what is there), and either
   those of distances (E) and directions (E, 3) or that of the table (added). */
INLINE void gradient_of(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *gx, const REAL *gout,
                        REAL *gnodes, REAL *gvec, REAL *gdistance, REAL *gdirection, REAL *gtable, const int attends,
                        const int in, const int gives, const int geometry) {
  SIZES;
  vec key[MOST], dkey[MOST], scalar[MOST], dscalar[MOST];
  for (int64_t i = first_atom; i < last_atom; i++) {
    const REAL *q = l->nodes + i * S, *g = gx + i * F, *go = gives ? gout + i * 3 * F : 0;
    REAL *gq = gnodes + i * S;
    for (int64_t e = l->start[i]; e < l->start[i + 1]; e++) {
      EDGE;
      const REAL *dw = w + TERMS;
      REAL *gk = gnodes + j * S + F, *gv = gnodes + j * S + V, *gvj = in ? gvec + j * 3 * F : 0;
      REAL *gt = gtable + l->row[e] * R;
      vec s = all(0), ga = all(0), gs = all(0), a = all(1), da, dda;
      vec by_distance = all(0), by_direction[3] = {all(0), all(0), all(0)};
      for (int64_t c = 0, n = 0; c < F; c += W, n++) {
        lookup2(t0 + c, R, w, dw, &scalar[n], &dscalar[n]);
        if (attends) {
          lookup2(t + c, R, w, dw, &key[n], &dkey[n]);
          s += load(q + c) * load(k + c) * key[n];
          ga += load(g + c) * load(v + c) * scalar[n];
        }
      }
      if (attends) {
        silu(fold(s, l->heads), &a, &da, &dda);
        gs = da * fold(ga, l->heads);
      }
      for (int64_t c = 0, n = 0; c < F; c += W, n++) {
        vec gc = load(g + c);
        add(gv + c, gc * scalar[n] * a);
        give(geometry, gc * load(v + c) * a, dscalar[n], &by_distance, gt + T + c, R, w);
        if (attends) {
          vec qc = load(q + c), kc = load(k + c);
          add(gq + c, gs * kc * key[n]);
          add(gk + c, gs * qc * key[n]);
          give(geometry, gs * qc * kc, dkey[n], &by_distance, gt + c, R, w);
        }
        if (gives) {
          vec g0 = load(go + c), g1 = load(go + F + c), g2 = load(go + 2 * F + c), v2 = load(v + 2 * F + c);
          vec across, dacross, along, dalong;
          vec turned = g0 * u[0] + g1 * u[1] + g2 * u[2];
          lookup2(t + 3 * F + c, R, w, dw, &across, &dacross);
          add(gv + 2 * F + c, across * turned);
          give(geometry, v2 * turned, dacross, &by_distance, gt + 3 * F + c, R, w);
          by_direction[0] += v2 * across * g0;
          by_direction[1] += v2 * across * g1;
          by_direction[2] += v2 * across * g2;
          if (in) {
            vec v1 = load(v + F + c);
            vec dot = g0 * load(vj + c) + g1 * load(vj + F + c) + g2 * load(vj + 2 * F + c);
            lookup2(t + 2 * F + c, R, w, dw, &along, &dalong);
            add(gv + F + c, along * dot);
            vec f = v1 * along;
            add(gvj + c, f * g0);
            add(gvj + F + c, f * g1);
            add(gvj + 2 * F + c, f * g2);
            give(geometry, v1 * dot, dalong, &by_distance, gt + 2 * F + c, R, w);
          }
        }
      }
      if (geometry) {
        gdistance[e] = sum(by_distance);
        for (int d = 0; d < 3 && gives; d++) gdirection[3 * e + d] = sum(by_direction[d]);
      }
    }
  }
}

/* With the rates tnodes, tvec, tdistance, tdirection of nodes, vec, distances and directions, the rates tx (N, F) and
   tout (N, 3, F) of the sums; and with gx and gout the gradient of gx . tx + gout . tout in nodes, vec and the table. */
INLINE void second_of(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *gx, const REAL *gout,
                      const REAL *tnodes, const REAL *tvec, const REAL *tdistance, const REAL *tdirection, REAL *tx,
                      REAL *tout, REAL *gnodes, REAL *gvec, REAL *gtable, const int attends, const int in,
                      const int gives) {
  SIZES;
  vec key[MOST], dkey[MOST], scalar[MOST], dscalar[MOST];
  for (int64_t i = first_atom; i < last_atom; i++) {
    const REAL *q = l->nodes + i * S, *tq = tnodes + i * S, *g = gx + i * F, *go = gives ? gout + i * 3 * F : 0;
    REAL *gq = gnodes + i * S, *txi = tx + i * F, *toi = gives ? tout + i * 3 * F : 0;
    memset(txi, 0, F * sizeof(REAL));
    if (gives) memset(toi, 0, 3 * F * sizeof(REAL));
    for (int64_t e = l->start[i]; e < l->start[i + 1]; e++) {
      EDGE;
      const REAL *tk = tnodes + j * S + F, *tv = tnodes + j * S + V, *tu = tdirection + 3 * e;
      const REAL *tvj = in ? tvec + j * 3 * F : 0;
      REAL dw[TERMS];
      for (int n = 0; n < TERMS; n++) dw[n] = w[TERMS + n] * tdistance[e];
      REAL *gk = gnodes + j * S + F, *gv = gnodes + j * S + V, *gvj = in ? gvec + j * 3 * F : 0;
      REAL *gt = gtable + l->row[e] * R;
      vec s = all(0), ts = all(0), ga = all(0), tga = all(0), a = all(1), da, dda;
      vec ta = all(0), gs = all(0), tgs = all(0);
      for (int64_t c = 0, n = 0; c < F; c += W, n++) {
        lookup2(t0 + c, R, w, dw, &scalar[n], &dscalar[n]);
        if (attends) {
          vec qc = load(q + c), kc = load(k + c), gc = load(g + c), v0 = load(v + c);
          lookup2(t + c, R, w, dw, &key[n], &dkey[n]);
          s += qc * kc * key[n];
          ts += (load(tq + c) * kc + qc * load(tk + c)) * key[n] + qc * kc * dkey[n];
          ga += gc * v0 * scalar[n];
          tga += gc * (load(tv + c) * scalar[n] + v0 * dscalar[n]);
        }
      }
      if (attends) {
        ts = fold(ts, l->heads);
        ga = fold(ga, l->heads);
        silu(fold(s, l->heads), &a, &da, &dda);
        ta = da * ts, gs = da * ga, tgs = ga * dda * ts + fold(tga, l->heads) * da;
      }
      for (int64_t c = 0, n = 0; c < F; c += W, n++) {
        vec v0 = load(v + c), gc = load(g + c), tv0 = load(tv + c);
        vec moved = tv0 * scalar[n] + v0 * dscalar[n];
        add(txi + c, moved * a + v0 * scalar[n] * ta);
        add(gv + c, gc * (scalar[n] * ta + dscalar[n] * a));
        spread2(gt + T + c, R, w, dw, gc * (tv0 * a + v0 * ta), gc * v0 * a);
        if (attends) {
          vec qc = load(q + c), kc = load(k + c), tqc = load(tq + c), tkc = load(tk + c);
          add(gq + c, tgs * kc * key[n] + gs * (tkc * key[n] + kc * dkey[n]));
          add(gk + c, tgs * qc * key[n] + gs * (tqc * key[n] + qc * dkey[n]));
          spread2(gt + c, R, w, dw, tgs * qc * kc + gs * (tqc * kc + qc * tkc), gs * qc * kc);
        }
        if (gives) {
          vec g0 = load(go + c), g1 = load(go + F + c), g2 = load(go + 2 * F + c);
          vec v2 = load(v + 2 * F + c), tv2 = load(tv + 2 * F + c), across, dacross;
          lookup2(t + 3 * F + c, R, w, dw, &across, &dacross);
          vec turned = g0 * u[0] + g1 * u[1] + g2 * u[2], tturned = g0 * tu[0] + g1 * tu[1] + g2 * tu[2];
          vec f = v2 * across, tf = tv2 * across + v2 * dacross;
          vec m0 = tf * u[0] + f * tu[0], m1 = tf * u[1] + f * tu[1], m2 = tf * u[2] + f * tu[2];
          add(gv + 2 * F + c, across * tturned + dacross * turned);
          spread2(gt + 3 * F + c, R, w, dw, tv2 * turned + v2 * tturned, v2 * turned);
          if (in) {
            vec v1 = load(v + F + c), tv1 = load(tv + F + c), along, dalong;
            lookup2(t + 2 * F + c, R, w, dw, &along, &dalong);
            vec x0 = load(vj + c), x1 = load(vj + F + c), x2 = load(vj + 2 * F + c);
            vec y0 = load(tvj + c), y1 = load(tvj + F + c), y2 = load(tvj + 2 * F + c);
            vec dot = g0 * x0 + g1 * x1 + g2 * x2, tdot = g0 * y0 + g1 * y1 + g2 * y2;
            vec h = v1 * along, th = tv1 * along + v1 * dalong;
            m0 += th * x0 + h * y0;
            m1 += th * x1 + h * y1;
            m2 += th * x2 + h * y2;
            add(gv + F + c, along * tdot + dalong * dot);
            add(gvj + c, th * g0);
            add(gvj + F + c, th * g1);
            add(gvj + 2 * F + c, th * g2);
            spread2(gt + 2 * F + c, R, w, dw, tv1 * dot + v1 * tdot, v1 * dot);
          }
          add(toi + c, m0);
          add(toi + F + c, m1);
          add(toi + 2 * F + c, m2);
        }
      }
    }
  }
}

/* The functions above for each kind of layer: the start, without attention; the first, to which no vectors come; the last,
   of whose vectors nothing is wanted; and the others. */
#define KINDS(FUNCTION, ...)                                   \
  do {                                                         \
    if (!l->heads) FUNCTION(__VA_ARGS__, 0, 0, 0);             \
    else if (!l->gives_vectors) FUNCTION(__VA_ARGS__, 1, 0, 0); \
    else if (!l->has_vectors) FUNCTION(__VA_ARGS__, 1, 0, 1);  \
    else FUNCTION(__VA_ARGS__, 1, 1, 1);                       \
  } while (0)
#define GEOMETRY(...) gradient_of(__VA_ARGS__, 1)
#define TABLE(...) gradient_of(__VA_ARGS__, 0)

void sums(const Layer *l, int64_t first_atom, int64_t last_atom, REAL *x, REAL *out) {
  KINDS(sums_of, l, first_atom, last_atom, x, out);
}

void by_geometry(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *gx, const REAL *gout, REAL *gnodes,
                 REAL *gvec, REAL *gdistance, REAL *gdirection) {
  KINDS(GEOMETRY, l, first_atom, last_atom, gx, gout, gnodes, gvec, gdistance, gdirection, 0);
}

void by_table(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *gx, const REAL *gout, REAL *gnodes,
              REAL *gvec, REAL *gtable) {
  KINDS(TABLE, l, first_atom, last_atom, gx, gout, gnodes, gvec, 0, 0, gtable);
}

void second(const Layer *l, int64_t first_atom, int64_t last_atom, const REAL *gx, const REAL *gout, const REAL *tnodes,
            const REAL *tvec, const REAL *tdistance, const REAL *tdirection, REAL *tx, REAL *tout, REAL *gnodes,
            REAL *gvec, REAL *gtable) {
  KINDS(second_of, l, first_atom, last_atom, gx, gout, tnodes, tvec, tdistance, tdirection, tx, tout, gnodes, gvec,
        gtable);
}

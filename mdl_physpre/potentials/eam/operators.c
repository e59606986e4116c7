/* Edges of the embedded-atom potential: their terms, and the derivatives in positions and cells.

   Edges are sorted by the atom in their centre: those of atom i are start[i] .. start[i + 1] - 1. Compiled with
   -DREAL=float or -DREAL=double; see eam_edges.py.
*/

#include <math.h>
#include <stdint.h>

#define COEFFICIENTS 6

typedef struct {
  int64_t n_elements, intervals;
  double scale;                                     /* intervals per angstrom */
  const int64_t *start, *neighbour, *batch, *element;
  const int32_t *pair_of;                           /* (n_elements, n_elements) */
  const REAL *position, *cell, *offset;             /* (n, 3), (structures, 3, 3), (edges, 3) */
  const REAL *table;                                /* (pairs, intervals + 1, 2, COEFFICIENTS): phi and rho */
  REAL *vector, *distance, *phi_slope, *rho_slope;  /* of each edge */
  REAL *phi, *rho;                                  /* of each atom */
} edges_t;

/* Value and derivative in u of a polynomial. */
static inline void polynomial(const REAL *c, REAL u, REAL *value, REAL *slope) {
  REAL v = c[COEFFICIENTS - 1], s = 0;
  for (int k = COEFFICIENTS - 2; k >= 0; k--) {
    s = s * u + v;
    v = v * u + c[k];
  }
  *value = v;
  *slope = s;
}

/* Vector, length and radial functions of each edge, and their sums over the edges of each atom. */
void terms(const edges_t *g, int64_t first, int64_t last) {
  const REAL scale = (REAL)g->scale;
  for (int64_t i = first; i < last; i++) {
    const REAL *cell = g->cell + 9 * g->batch[i], *here = g->position + 3 * i;
    const int32_t *pairs = g->pair_of + g->n_elements * g->element[i];
    double phi = 0, rho = 0;
    for (int64_t e = g->start[i]; e < g->start[i + 1]; e++) {
      const REAL *there = g->position + 3 * g->neighbour[e], *s = g->offset + 3 * e;
      REAL *v = g->vector + 3 * e, square = 0;
      for (int x = 0; x < 3; x++) {
        v[x] = there[x] - here[x] + (s[0] * cell[x] + s[1] * cell[3 + x] + s[2] * cell[6 + x]);
        square += v[x] * v[x];
      }
      const REAL r = sqrt(square), place = r * scale;
      /* beyond the table, and where r is NaN, is the row of zeros that ends each pair */
      const int64_t interval = place < (REAL)g->intervals ? (int64_t)place : g->intervals;
      const REAL u = place - (REAL)interval;
      const int64_t row = pairs[g->element[g->neighbour[e]]] * (g->intervals + 1) + interval;
      const REAL *c = g->table + 2 * COEFFICIENTS * row;
      REAL value, slope;
      polynomial(c, u, &value, &slope);
      phi += value;
      g->phi_slope[e] = slope * scale;
      polynomial(c + COEFFICIENTS, u, &value, &slope);
      rho += value;
      g->rho_slope[e] = slope * scale;
      g->distance[e] = r;
    }
    g->phi[i] = (REAL)phi;
    g->rho[i] = (REAL)rho;
  }
}

/* From the adjoints of phi and rho of each atom those of the positions (n, 3), which are set, and of the cells
   (structures, 3, 3), to which this adds. Of each edge the list holds its reverse as well, so that

     g_ij = (phi_i + phi_j) phi'(r_ij) + (rho_i + rho_j) rho'(r_ij)   (phi, rho here the adjoints)

   is what a change of r_ij gives in both together: dr_i = -sum_j g_ij r_ij/|r_ij|, dcell = sum_ij S_ij g_ij r_ij/(2 |r_ij|).
*/
void by_geometry(const edges_t *g, int64_t first, int64_t last, const REAL *of_phi, const REAL *of_rho, REAL *position,
                 double *cell) {
  for (int64_t i = first; i < last; i++) {
    double f[3] = {0}, w[9] = {0};
    for (int64_t e = g->start[i]; e < g->start[i + 1]; e++) {
      const REAL *v = g->vector + 3 * e, *s = g->offset + 3 * e, r = g->distance[e];
      const int64_t j = g->neighbour[e];
      const REAL slope = (of_phi[i] + of_phi[j]) * g->phi_slope[e] + (of_rho[i] + of_rho[j]) * g->rho_slope[e];
      const REAL along = slope / (r < (REAL)1e-12 ? (REAL)1e-12 : r);
      for (int x = 0; x < 3; x++) {
        f[x] -= along * v[x];
        for (int y = 0; y < 3; y++) w[3 * x + y] += 0.5 * (double)(along * v[y]) * s[x];
      }
    }
    for (int x = 0; x < 3; x++) position[3 * i + x] = (REAL)f[x];
    for (int x = 0; x < 9; x++) cell[9 * g->batch[i] + x] += w[x];
  }
}

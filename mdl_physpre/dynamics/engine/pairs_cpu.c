/* Pairs of a neighbour list with a skin that lie within the cutoff now. Compiled with -DREAL=float or -DREAL=double;
   see pairs_cpu.py. */

#include <stdint.h>

/* Of the pairs (centre, neighbour), whose image is translated by shift (n, 3): copies those with a distance below the
   cutoff, with their offsets (n, 3), in order, and stores their number in count. */
void inside(int64_t n, const int64_t *centre, const int64_t *neighbour, const double *shift, const double *position,
            double cutoff, const REAL *offset, int64_t *centres, int64_t *neighbours, REAL *offsets, int64_t *count) {
  int64_t found = 0;
  const double bound = cutoff * cutoff;
  for (int64_t e = 0; e < n; e++) {
    const double *from = position + 3 * centre[e], *to = position + 3 * neighbour[e], *s = shift + 3 * e;
    const double x = to[0] - from[0] + s[0], y = to[1] - from[1] + s[1], z = to[2] - from[2] + s[2];
    /* written in any case and kept if inside: a branch here would be taken at random */
    centres[found] = centre[e];
    neighbours[found] = neighbour[e];
    for (int k = 0; k < 3; k++) offsets[3 * found + k] = offset[3 * e + k];
    found += x * x + y * y + z * z < bound;
  }
  *count = found;
}

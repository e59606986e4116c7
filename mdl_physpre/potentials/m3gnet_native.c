/* The operations of m3gnet_edges.py in one pass over memory each, for the rows first <= r < last.

   Compiled with -DREAL=float -DSINGLE or with -DREAL=double. A row is an edge; "units" is a whole number of vectors.
   Arrays of two halves have 2 units values a row: the value's half, then the gate's. The rows of the arrays "node",
   which are views of a wider array, are "stride" values apart.
*/

#include "native_vectors.h"

#define MOST 4 /* radial functions */

INLINE void silu(vec x, vec *f, vec *slope, vec *curvature) {
  vec s = sigmoid(x), rest = 1 - s;
  *f = x * s;
  *slope = s * (1 + x * rest);
  *curvature = s * rest * (2 + x * (1 - 2 * s));
}

/* ---- the first layer: a += P_i + Q_j, h = silu(a) ---- */

void hidden(int64_t first, int64_t last, int64_t units, int64_t stride, const int64_t *i, const int64_t *j,
            const REAL *node, REAL *a, REAL *h) {
  const int64_t width = 2 * units;
  for (int64_t r = first; r < last; r++) {
    const REAL *p = node + i[r] * stride, *q = node + j[r] * stride + width;
    for (int64_t c = 0; c < width; c += W) {
      vec x = load(a + r * width + c) + load(p + c) + load(q + c);
      store(a + r * width + c, x);
      store(h + r * width + c, x * sigmoid(x));
    }
  }
}

void hidden_tangent(int64_t first, int64_t last, int64_t units, int64_t stride, const int64_t *i, const int64_t *j,
                    const REAL *node, const REAL *a, REAL *a_dot, REAL *h_dot) {
  const int64_t width = 2 * units;
  vec f, slope, curvature;
  for (int64_t r = first; r < last; r++) {
    const REAL *p = node + i[r] * stride, *q = node + j[r] * stride + width;
    for (int64_t c = 0; c < width; c += W) {
      vec x = load(a_dot + r * width + c) + load(p + c) + load(q + c);
      silu(load(a + r * width + c), &f, &slope, &curvature);
      store(a_dot + r * width + c, x);
      store(h_dot + r * width + c, slope * x);
    }
  }
}

void hidden_adjoint(int64_t first, int64_t last, int64_t units, int64_t stride, const int64_t *i, const int64_t *j,
                    const REAL *a, const REAL *h_bar, REAL *node_bar, REAL *a_bar) {
  const int64_t width = 2 * units;
  vec f, slope, curvature;
  for (int64_t r = first; r < last; r++) {
    REAL *p = node_bar + i[r] * stride, *q = node_bar + j[r] * stride + width;
    for (int64_t c = 0; c < width; c += W) {
      silu(load(a + r * width + c), &f, &slope, &curvature);
      vec x = load(h_bar + r * width + c) * slope;
      store(a_bar + r * width + c, x);
      store(p + c, load(p + c) + x);
      store(q + c, load(q + c) + x);
    }
  }
}

void hidden_second(int64_t first, int64_t last, int64_t units, int64_t stride, const int64_t *i, const int64_t *j,
                   const REAL *a, const REAL *a_dot, const REAL *h_bar, const REAL *h_bar_dot, REAL *node_bar_dot,
                   REAL *h, REAL *h_dot, REAL *a_bar, REAL *a_bar_dot) {
  const int64_t width = 2 * units;
  vec f, slope, curvature;
  for (int64_t r = first; r < last; r++) {
    REAL *p = node_bar_dot + i[r] * stride, *q = node_bar_dot + j[r] * stride + width;
    for (int64_t c = 0; c < width; c += W) {
      const int64_t at = r * width + c;
      silu(load(a + at), &f, &slope, &curvature);
      vec dot = load(a_dot + at), bar = load(h_bar + at);
      vec x = load(h_bar_dot + at) * slope + bar * (curvature * dot);
      store(h + at, f);
      store(h_dot + at, slope * dot);
      store(a_bar + at, bar * slope);
      store(a_bar_dot + at, x);
      store(p + c, load(p + c) + x);
      store(q + c, load(q + c) + x);
    }
  }
}

/* ---- the second layer: o = silu(y_g) sigmoid(y_s), target[at] = source[at] + o d with d = p (kind 1), silu(p) (2) or 1
   (0). Without a y, o is 1, and the adjoints of y are left out. Without a source, the target itself is the source. ---- */

/* Rows with the same target stay with one thread */
INLINE void own_rows(const int64_t *at, int64_t rows, int64_t *first, int64_t *last) {
  while (*first > 0 && *first < rows && at[*first] == at[*first - 1]) ++*first;
  while (*last > 0 && *last < rows && at[*last] == at[*last - 1]) ++*last;
}

INLINE vec weighted(const REAL *radial, const REAL *weight, int64_t n, int64_t units, int64_t c) {
  vec p = all(0);
  for (int64_t k = 0; k < n; k++) p += radial[k] * load(weight + k * units + c);
  return p;
}

INLINE void factor(int kind, vec p, vec *d, vec *slope, vec *curvature) {
  if (kind == 2) {
    silu(p, d, slope, curvature);
  } else {
    *d = kind ? p : all(1);
    *slope = all(1);
    *curvature = all(0);
  }
}

INLINE void opened(const REAL *y, int64_t units, vec *g, vec *g1, vec *g2, vec *s) {
  *g = *s = all(1);
  *g1 = *g2 = all(0);
  if (y) {
    silu(load(y), g, g1, g2);
    *s = sigmoid(load(y + units));
  }
}

void gate(int64_t first, int64_t last, int64_t rows, int64_t units, int64_t kind, int64_t n, const REAL *radial,
          const REAL *weight, const int64_t *at, const REAL *bias, REAL *y, const REAL *source, REAL *target) {
  own_rows(at, rows, &first, &last);
  for (int64_t r = first; r < last; r++) {
    REAL *t = target + at[r] * units, *yg = y ? y + r * 2 * units : y;
    const REAL *before = source ? source + at[r] * units : t;
    for (int64_t c = 0; c < units; c += W) {
      vec o = all(1), d, slope, curvature;
      if (y) {
        vec g = load(yg + c), s = load(yg + units + c);
        if (bias) {
          g += load(bias + c);
          s += load(bias + units + c);
          store(yg + c, g);
          store(yg + units + c, s);
        }
        o = g * sigmoid(g) * sigmoid(s);
      }
      factor(kind, weighted(radial + r * n, weight, n, units, c), &d, &slope, &curvature);
      store(t + c, load(before + c) + o * d);
    }
  }
}

void gate_adjoint(int64_t first, int64_t last, int64_t rows, int64_t units, int64_t kind, int64_t n,
                  const REAL *radial, const REAL *weight, const int64_t *at, const REAL *y, const REAL *target_bar,
                  REAL *radial_bar, REAL *y_bar) {
  for (int64_t r = first; r < last; r++) {
    const REAL *t = target_bar + at[r] * units;
    const int64_t row = r * 2 * units;
    vec sums[MOST] = {{0}};
    for (int64_t c = 0; c < units; c += W) {
      vec g, g1, g2, s, d, slope, curvature, x = load(t + c);
      opened(y ? y + row + c : y, units, &g, &g1, &g2, &s);
      factor(kind, weighted(radial + r * n, weight, n, units, c), &d, &slope, &curvature);
      vec p_bar = x * g * s * slope, o_bar = x * d;
      for (int64_t k = 0; k < n; k++) sums[k] += p_bar * load(weight + k * units + c);
      if (!y) continue;
      store(y_bar + row + c, o_bar * g1 * s);
      store(y_bar + row + units + c, o_bar * g * (s * (1 - s)));
    }
    for (int64_t k = 0; k < n; k++) radial_bar[r * n + k] += sum(sums[k]);
  }
}

void gate_tangent(int64_t first, int64_t last, int64_t rows, int64_t units, int64_t kind, int64_t n,
                  const REAL *radial, const REAL *radial_dot, const REAL *weight, const int64_t *at, const REAL *y,
                  const REAL *y_dot, const REAL *source, REAL *target_dot) {
  own_rows(at, rows, &first, &last);
  for (int64_t r = first; r < last; r++) {
    REAL *t = target_dot + at[r] * units;
    const REAL *before = source ? source + at[r] * units : t;
    const int64_t row = r * 2 * units;
    for (int64_t c = 0; c < units; c += W) {
      vec g, g1, g2, s, d, slope, curvature, o_dot = all(0);
      opened(y ? y + row + c : y, units, &g, &g1, &g2, &s);
      factor(kind, weighted(radial + r * n, weight, n, units, c), &d, &slope, &curvature);
      if (y) o_dot = g1 * s * load(y_dot + row + c) + g * (s * (1 - s)) * load(y_dot + row + units + c);
      vec d_dot = slope * weighted(radial_dot + r * n, weight, n, units, c);
      store(t + c, load(before + c) + o_dot * d + g * s * d_dot);
    }
  }
}

void gate_second(int64_t first, int64_t last, int64_t rows, int64_t units, int64_t kind, int64_t n,
                 const REAL *radial, const REAL *radial_dot, const REAL *weight, const int64_t *at, const REAL *y,
                 const REAL *y_dot, const REAL *target_bar, const REAL *target_bar_dot, REAL *weight_bar_dot,
                 REAL *y_bar, REAL *y_bar_dot) {
  for (int64_t r = first; r < last; r++) {
    const REAL *t = target_bar + at[r] * units, *t_dot = target_bar_dot + at[r] * units;
    const int64_t row = r * 2 * units;
    for (int64_t c = 0; c < units; c += W) {
      vec g, g1, g2, s, d, slope, curvature, x = load(t + c), x_dot = load(t_dot + c), yg = all(0), ys = all(0);
      opened(y ? y + row + c : y, units, &g, &g1, &g2, &s);
      factor(kind, weighted(radial + r * n, weight, n, units, c), &d, &slope, &curvature);
      if (y) {
        yg = load(y_dot + row + c);
        ys = load(y_dot + row + units + c);
      }
      vec s1 = s * (1 - s), s2 = s1 * (1 - 2 * s);
      vec along_g = g1 * s * yg + g * s1 * ys, o_bar = x * d, o_bar_dot = x_dot * d;
      if (kind) {
        vec p_dot = weighted(radial_dot + r * n, weight, n, units, c), o = g * s;
        vec p_bar = x * o * slope, p_bar_dot = (x_dot * o + x * along_g) * slope + x * o * curvature * p_dot;
        o_bar_dot += x * slope * p_dot;
        for (int64_t k = 0; k < n; k++) {
          REAL *w = weight_bar_dot + k * units + c;
          store(w, load(w) + p_bar_dot * radial[r * n + k] + p_bar * radial_dot[r * n + k]);
        }
      }
      if (!y) continue;
      store(y_bar + row + c, o_bar * g1 * s);
      store(y_bar + row + units + c, o_bar * g * s1);
      store(y_bar_dot + row + c, o_bar_dot * g1 * s + o_bar * (g2 * s * yg + g1 * s1 * ys));
      store(y_bar_dot + row + units + c, o_bar_dot * g * s1 + o_bar * (g1 * s1 * yg + g * s2 * ys));
    }
  }
}

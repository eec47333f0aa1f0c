/** Sources that one pass over the output combines; more need further passes. */
const passSources = 8;

type Pass = (s: readonly Float32Array[], c: readonly number[], out: Float32Array) => void;

/**
 * Merges weights: `out[i] = Σ_j coefficients[j] · sources[j][i]`, the expert merge of EEP (arXiv 2407.00945, W_EM)
 * and of every linear merge. This is the one definition of its rounding: whoever merges for evaluation or for
 * export calls it, so that both get the same bits.
 *
 * Sources with a zero coefficient are left out and never read. The others are taken in the order given (callers
 * give ascending experts): products and sums of the first eight in float64, rounded to float32 once; each further
 * seven are added to that and rounded again. Every element is computed by itself, so a tensor may be merged in
 * pieces. With a single coefficient of 1 the result is the source itself.
 *
 * @param sources arrays of the length of `out`; those with a zero coefficient may have any length
 * @param out receives the result; must not be one of the sources
 */
export function mergeRows(
  sources: readonly Float32Array[],
  coefficients: readonly number[],
  out: Float32Array,
): void {
  const used: Float32Array[] = [];
  const factors: number[] = [];
  for (let j = 0; j < sources.length; j++) {
    const factor = coefficients[j] as number;
    if (factor === 0) continue;
    const source = sources[j] as Float32Array;
    if (source.length !== out.length) {
      throw new RangeError(`source ${j} has ${source.length} values, the merged weight has ${out.length}`);
    }
    used.push(source);
    factors.push(factor);
  }
  if (used.length === 0) {
    out.fill(0);
    return;
  }
  if (used.length === 1 && factors[0] === 1) {
    out.set(used[0] as Float32Array);
    return;
  }
  (passes[Math.min(used.length, passSources)] as Pass)(used, factors, out);
  for (let from = passSources; from < used.length; from += passSources - 1) {
    const more = used.slice(from, from + passSources - 1);
    const pass = passes[more.length + 1] as Pass;
    pass([out, ...more], [1, ...factors.slice(from, from + more.length)], out);
  }
}

/** The expert that a merging row leaves as it is: one coefficient of 1, all others 0. */
export function onlyExpert(row: readonly number[]): number | undefined {
  const expert = row.findIndex((value) => value !== 0);
  const isOnly = row[expert] === 1 && row.every((value, other) => other === expert || value === 0);
  return isOnly ? expert : undefined;
}

type F = Float32Array;
type Eight<T> = [T, T, T, T, T, T, T, T];

// One unrolled loop per number of sources: reading every source once and writing the output once is what makes
// this several times faster than adding source by source, and V8 keeps the sum in a register.
const passes: readonly (Pass | undefined)[] = [
  undefined,
  (s, c, out) => {
    const [a] = s as Eight<F>;
    const [p] = c as Eight<number>;
    for (let i = 0; i < out.length; i++) out[i] = p * (a[i] as number);
  },
  (s, c, out) => {
    const [a, b] = s as Eight<F>;
    const [p, q] = c as Eight<number>;
    for (let i = 0; i < out.length; i++) out[i] = p * (a[i] as number) + q * (b[i] as number);
  },
  (s, c, out) => {
    const [a, b, d] = s as Eight<F>;
    const [p, q, r] = c as Eight<number>;
    for (let i = 0; i < out.length; i++) {
      out[i] = p * (a[i] as number) + q * (b[i] as number) + r * (d[i] as number);
    }
  },
  (s, c, out) => {
    const [a, b, d, e] = s as Eight<F>;
    const [p, q, r, t] = c as Eight<number>;
    for (let i = 0; i < out.length; i++) {
      out[i] = p * (a[i] as number) + q * (b[i] as number) + r * (d[i] as number) + t * (e[i] as number);
    }
  },
  (s, c, out) => {
    const [a, b, d, e, f] = s as Eight<F>;
    const [p, q, r, t, u] = c as Eight<number>;
    for (let i = 0; i < out.length; i++) {
      out[i] =
        p * (a[i] as number) +
        q * (b[i] as number) +
        r * (d[i] as number) +
        t * (e[i] as number) +
        u * (f[i] as number);
    }
  },
  (s, c, out) => {
    const [a, b, d, e, f, g] = s as Eight<F>;
    const [p, q, r, t, u, v] = c as Eight<number>;
    for (let i = 0; i < out.length; i++) {
      out[i] =
        p * (a[i] as number) +
        q * (b[i] as number) +
        r * (d[i] as number) +
        t * (e[i] as number) +
        u * (f[i] as number) +
        v * (g[i] as number);
    }
  },
  (s, c, out) => {
    const [a, b, d, e, f, g, h] = s as Eight<F>;
    const [p, q, r, t, u, v, w] = c as Eight<number>;
    for (let i = 0; i < out.length; i++) {
      out[i] =
        p * (a[i] as number) +
        q * (b[i] as number) +
        r * (d[i] as number) +
        t * (e[i] as number) +
        u * (f[i] as number) +
        v * (g[i] as number) +
        w * (h[i] as number);
    }
  },
  (s, c, out) => {
    const [a, b, d, e, f, g, h, k] = s as Eight<F>;
    const [p, q, r, t, u, v, w, x] = c as Eight<number>;
    for (let i = 0; i < out.length; i++) {
      out[i] =
        p * (a[i] as number) +
        q * (b[i] as number) +
        r * (d[i] as number) +
        t * (e[i] as number) +
        u * (f[i] as number) +
        v * (g[i] as number) +
        w * (h[i] as number) +
        x * (k[i] as number);
    }
  },
];

import type { UnitFeatures } from "./unit-features.js";

/** What two vectors have to do with one another, from their inner product and norms. */
export type Measure = (inner: number, normA: number, normB: number) => number;

/** Cosine; 0 for a vector of zeros. */
export const cosine: Measure = (inner, normA, normB) =>
  normA > 0 && normB > 0 ? inner / (normA * normB) : 0;

/** Euclidean distance of the two vectors at length 1; a vector of zeros stays one. */
export const distance: Measure = (inner, normA, normB) => {
  const lengths = Number(normA > 0) + Number(normB > 0);
  return Math.sqrt(Math.max(0, lengths - 2 * cosine(inner, normA, normB)));
};

/** Rows of `b` that are compared with all of `a` before the next ones, so that they stay in the processor's cache. */
const blockRows = 64;

/**
 * Compares every hidden unit of one expert with every one of another: `out[i, j]` is the sum of `measure` over the sets
 * of features, i a unit of `a` and j one of `b`. Inner products are float64.
 * @param a [sets], as many as `b`
 * @param out [width of a, width of b], overwritten
 */
export function compareUnits(
  a: readonly UnitFeatures[],
  b: readonly UnitFeatures[],
  measure: Measure,
  out: Float64Array,
): void {
  out.fill(0);
  for (let set = 0; set < a.length; set++)
    addSet(a[set] as UnitFeatures, b[set] as UnitFeatures, measure, out);
}

function addSet(a: UnitFeatures, b: UnitFeatures, measure: Measure, out: Float64Array): void {
  const [rows, columns] = [a.norms.length, b.norms.length];
  const inner = new Float64Array(tileRows * tileColumns);
  for (let from = 0; from < columns; from += blockRows) {
    const to = Math.min(columns, from + blockRows);
    for (let i = 0; i < rows; i += tileRows) {
      for (let j = from; j < to; j += tileColumns) {
        inner.fill(0);
        for (let part = 0; part < a.parts.length; part++) {
          addTile(
            { values: a.parts[part] as Float32Array, first: i, rows },
            { values: b.parts[part] as Float32Array, first: j, rows: columns },
            inner,
          );
        }
        for (let y = i; y < Math.min(rows, i + tileRows); y++) {
          for (let x = j; x < Math.min(to, j + tileColumns); x++) {
            const at = y * columns + x;
            const product = inner[(y - i) * tileColumns + x - j] as number;
            out[at] = (out[at] as number) + measure(product, a.norms[y] as number, b.norms[x] as number);
          }
        }
      }
    }
  }
}

const tileRows = 2;
const tileColumns = 4;

interface Rows {
  readonly values: Float32Array;
  /** First row of the tile; rows behind the last are the last once more. */
  readonly first: number;
  readonly rows: number;
}

/** Adds the inner products of 2 rows with 4, so that each value that is loaded counts several times. */
function addTile(a: Rows, b: Rows, sums: Float64Array): void {
  const size = a.values.length / a.rows;
  const start = ({ first, rows }: Rows, row: number) => Math.min(first + row, rows - 1) * size;
  const [x, y] = [a.values, b.values];
  const [a0, a1] = [start(a, 0), start(a, 1)];
  const [b0, b1, b2, b3] = [start(b, 0), start(b, 1), start(b, 2), start(b, 3)];
  let [s0, s1, s2, s3, t0, t1, t2, t3] = [0, 0, 0, 0, 0, 0, 0, 0];
  for (let i = 0; i < size; i++) {
    const p = x[a0 + i] as number;
    const q = x[a1 + i] as number;
    const u = y[b0 + i] as number;
    const v = y[b1 + i] as number;
    const w = y[b2 + i] as number;
    const z = y[b3 + i] as number;
    s0 += p * u;
    s1 += p * v;
    s2 += p * w;
    s3 += p * z;
    t0 += q * u;
    t1 += q * v;
    t2 += q * w;
    t3 += q * z;
  }
  const tile = [s0, s1, s2, s3, t0, t1, t2, t3];
  for (let i = 0; i < tile.length; i++) sums[i] = (sums[i] as number) + (tile[i] as number);
}

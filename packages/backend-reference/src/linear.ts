/**
 * `y = x Wᵀ + b` over the first `rows` rows: x is [rows, inputs], weight [outputs, inputs], y [rows, outputs].
 *
 * Every sum runs over the inputs in ascending order in float64, whatever the tile that holds it, so a row gives
 * the same bits alone and in any batch. Tiles of 4 x 2 keep eight sums in registers: measured, larger tiles spill.
 */
export function linear(
  x: Float32Array,
  rows: number,
  weight: Float32Array,
  inputs: number,
  outputs: number,
  y: Float32Array,
  bias?: Float32Array,
): void {
  let row = 0;
  for (; row + 4 <= rows; row += 4) fourRows(x, row, weight, inputs, outputs, y);
  for (; row < rows; row++) oneRow(x, row, weight, inputs, outputs, y);
  if (bias) addBias(y, rows, outputs, bias);
}

// Unchecked reads: every index below is inside its array by construction.
function fourRows(
  x: Float32Array,
  row: number,
  w: Float32Array,
  inputs: number,
  outputs: number,
  y: Float32Array,
) {
  const a = row * inputs;
  const b = a + inputs;
  const c = b + inputs;
  const d = c + inputs;
  const out = row * outputs;
  let column = 0;
  for (; column + 2 <= outputs; column += 2) {
    const p = column * inputs;
    const q = p + inputs;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    let s4 = 0;
    let s5 = 0;
    let s6 = 0;
    let s7 = 0;
    for (let i = 0; i < inputs; i++) {
      const u = w[p + i] as number;
      const v = w[q + i] as number;
      const xa = x[a + i] as number;
      const xb = x[b + i] as number;
      const xc = x[c + i] as number;
      const xd = x[d + i] as number;
      s0 += xa * u;
      s1 += xa * v;
      s2 += xb * u;
      s3 += xb * v;
      s4 += xc * u;
      s5 += xc * v;
      s6 += xd * u;
      s7 += xd * v;
    }
    const at = out + column;
    y[at] = s0;
    y[at + 1] = s1;
    y[at + outputs] = s2;
    y[at + outputs + 1] = s3;
    y[at + 2 * outputs] = s4;
    y[at + 2 * outputs + 1] = s5;
    y[at + 3 * outputs] = s6;
    y[at + 3 * outputs + 1] = s7;
  }
  for (; column < outputs; column++) {
    for (let r = 0; r < 4; r++)
      y[out + r * outputs + column] = dot(x, a + r * inputs, w, column * inputs, inputs);
  }
}

function oneRow(
  x: Float32Array,
  row: number,
  w: Float32Array,
  inputs: number,
  outputs: number,
  y: Float32Array,
) {
  const a = row * inputs;
  const out = row * outputs;
  let column = 0;
  for (; column + 4 <= outputs; column += 4) {
    const p = column * inputs;
    const q = p + inputs;
    const r = q + inputs;
    const s = r + inputs;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    for (let i = 0; i < inputs; i++) {
      const xa = x[a + i] as number;
      s0 += xa * (w[p + i] as number);
      s1 += xa * (w[q + i] as number);
      s2 += xa * (w[r + i] as number);
      s3 += xa * (w[s + i] as number);
    }
    y[out + column] = s0;
    y[out + column + 1] = s1;
    y[out + column + 2] = s2;
    y[out + column + 3] = s3;
  }
  for (; column < outputs; column++) y[out + column] = dot(x, a, w, column * inputs, inputs);
}

function addBias(y: Float32Array, rows: number, outputs: number, bias: Float32Array): void {
  for (let row = 0; row < rows; row++) {
    const out = row * outputs;
    for (let i = 0; i < outputs; i++) y[out + i] = (y[out + i] as number) + (bias[i] as number);
  }
}

/** Scalar product of `length` values of a from `i` and of b from `j`. */
export function dot(a: Float32Array, i: number, b: Float32Array, j: number, length: number): number {
  let sum = 0;
  for (let k = 0; k < length; k++) sum += (a[i + k] as number) * (b[j + k] as number);
  return sum;
}

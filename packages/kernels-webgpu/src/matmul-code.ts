/** Parameters of the kernels that multiply x [m, k] with one part of the rows of W. */
export type MatmulParam =
  | "m"
  | "n"
  | "k"
  | "divisor"
  | "first"
  | "count"
  | "column"
  | "stride"
  | "factor"
  | "limit"
  | "alpha";

export const matmulParams: Readonly<Record<MatmulParam, "u32" | "f32">> = {
  m: "u32",
  n: "u32",
  k: "u32",
  divisor: "u32",
  first: "u32",
  count: "u32",
  column: "u32",
  stride: "u32",
  factor: "f32",
  limit: "f32",
  alpha: "f32",
};

/** `load_x(row, k4)`: four columns of x from 4 * k4 on, 0 behind the last. With `vectors`, x is an array of vectors of four. */
export function loadXCode(vectors: boolean): string {
  const body = vectors
    ? "  if (4u * k4 >= p.k) { return vec4f(0.0); }\n  return x[row * (p.k / 4u) + k4];"
    : `  var v = vec4f(0.0);
  for (var i = 0u; i < 4u; i++) { if (4u * k4 + i < p.k) { v[i] = x[row * p.k + 4u * k4 + i]; } }
  return v;`;
  return `fn load_x(row: u32, k4: u32) -> vec4f {\n${body}\n}`;
}

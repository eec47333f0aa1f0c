import { loadCode, type WeightFormat } from "./gpu-matrix.js";
import { range } from "./range.js";

/**
 * WGSL of two functions that multiply eight columns of x with the weights of a row of the part:
 * `fn <name>_ready(v: vec4f) -> vec4f`, to which four columns of x are put once for all rows, and
 * `fn <name>_dot(row, k8, a, b) -> f32` with the first and the last four of them.
 *
 * Codes become numbers without a conversion, which GPUs do at a quarter of their rate or less: in the mantissa of 2^23 they are
 * whole numbers, times the power of two of their place, which `ready` takes from x. All of it is exact.
 * @param columns WGSL expression of the number of stored columns
 */
export function dotCode(name: string, format: WeightFormat, columns: string): string {
  if (format.kind !== "quantized") {
    return `${loadCode(name, format, columns)}
fn ${name}_ready(v: vec4f) -> vec4f { return v; }
fn ${name}_dot(row: u32, k8: u32, a: vec4f, b: vec4f) -> f32 {
  let w = ${name}_load(row, k8);
  return dot(a, w[0]) + dot(b, w[1]);
}`;
  }
  const { bits, groupSize, zeros } = format;
  // Bits of the four codes in a word; of 8 bits only two fit below the 23 of the mantissa, the others are moved there.
  const places = range(4).map((i) => (bits === 8 ? 8 * (i % 2) : bits * i));
  const vector = (values: readonly (number | string)[], type: string) => `vec4${type}(${values.join(", ")})`;
  const powers = vector(
    places.map((place) => `${2 ** place}.0`),
    "f",
  );
  const masks = vector(
    places.map((place) => `${((2 ** bits - 1) * 2 ** place) >>> 0}u`),
    "u",
  );
  const words = {
    8: `  let codes = ${name}[at];
  let first = vec4u(vec2u(codes.x), vec2u(codes.x >> 16u));
  let last = vec4u(vec2u(codes.y), vec2u(codes.y >> 16u));`,
    4: `  let codes = ${name}[at];
  let first = vec4u(codes);
  let last = vec4u(codes >> 16u);`,
    2: `  let codes = ${name}[at / 2u] >> (16u * (at % 2u));
  let first = vec4u(codes);
  let last = vec4u(codes >> 8u);`,
  }[bits];
  return `fn ${name}_ready(v: vec4f) -> vec4f { return v / ${powers}; }
fn ${name}_number(codes: vec4u, zero: vec4f) -> vec4f {
  return bitcast<vec4f>((codes & ${masks}) | vec4u(0x4b000000u)) - zero;
}
fn ${name}_dot(row: u32, k8: u32, a: vec4f, b: vec4f) -> f32 {
  let at = row * (${columns} / 8u) + k8;
  let scale = ${name}_scales[at / ${groupSize / 8}u];
${words}
  let zero = vec4f(8388608.0) + ${powers} * ${zeros ? "scale.y" : `${2 ** (bits - 1)}.0`};
  return (dot(a, ${name}_number(first, zero)) + dot(b, ${name}_number(last, zero))) * scale${zeros ? ".x" : ""};
}`;
}

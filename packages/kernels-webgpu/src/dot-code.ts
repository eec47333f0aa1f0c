import { loadCode, type WeightFormat } from "./gpu-matrix.js";
import { range } from "./range.js";

/** Eights of columns that are read at once: of few bits so many that their codes are a read of 16 or 8 bytes. */
export function eightsRead(format: WeightFormat): 1 | 4 {
  return format.kind === "quantized" && format.bits < 8 ? 4 : 1;
}

/**
 * WGSL of two functions that multiply `eights` neighbouring eights of columns of x with the weights of a row of the part:
 * `fn <name>_ready(v: vec4f) -> vec4f`, to which four columns of x are put once for all rows, and
 * `fn <name>_dot(row, k8, a_0, b_0, ...) -> f32` with the first and the last four of every eight.
 *
 * Codes become numbers without a conversion, which GPUs do at a quarter of their rate or less: in the mantissa of 2^23 they are
 * whole numbers, times the power of two of their place, which `ready` takes from x. All of it is exact.
 * @param columns WGSL expression of the number of stored columns
 * @param eights 1, or `eightsRead`, by which columns are divisible then
 */
export function dotCode(name: string, format: WeightFormat, columns: string, eights: 1 | 4): string {
  const x = range(eights)
    .map((e) => `, a_${e}: vec4f, b_${e}: vec4f`)
    .join("");
  if (format.kind !== "quantized") {
    return `${loadCode(name, format, columns)}
fn ${name}_ready(v: vec4f) -> vec4f { return v; }
fn ${name}_dot(row: u32, k8: u32${x}) -> f32 {
  let w = ${name}_load(row, k8);
  return dot(a_0, w[0]) + dot(b_0, w[1]);
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
  // The first and the last four codes of an eight, at the low end of their words.
  const words = (e: number): readonly [string, string] => {
    if (bits === 8) {
      return ["vec4u(vec2u(codes.x), vec2u(codes.x >> 16u))", "vec4u(vec2u(codes.y), vec2u(codes.y >> 16u))"];
    }
    if (bits === 4) {
      const word = eights === 1 ? "codes" : `codes[${e}]`;
      return [`vec4u(${word})`, `vec4u(${word} >> 16u)`];
    }
    const word = eights === 1 ? "codes" : `(codes[${Math.floor(e / 2)}] >> ${16 * (e % 2)}u)`;
    return [`vec4u(${word})`, `vec4u(${word} >> 8u)`];
  };
  const read = {
    8: `${name}[at]`,
    4: eights === 1 ? `${name}[at]` : `${name}[at / 4u]`,
    2: eights === 1 ? `${name}[at / 2u] >> (16u * (at % 2u))` : `${name}[at / 4u]`,
  }[bits];
  // Eights that have a scale in common.
  const shared = Math.min(eights, groupSize / 8);
  const groups = range(eights / shared).map((g) => {
    const products = range(shared).map((i) => {
      const e = g * shared + i;
      const [first, last] = words(e);
      return `dot(a_${e}, ${name}_number(${first}, zero_${g})) + dot(b_${e}, ${name}_number(${last}, zero_${g}))`;
    });
    return `  let scale_${g} = ${name}_scales[at / ${groupSize / 8}u${g > 0 ? ` + ${g}u` : ""}];
  let zero_${g} = vec4f(8388608.0) + ${powers} * ${zeros ? `scale_${g}.y` : `${2 ** (bits - 1)}.0`};
  ${g === 0 ? "var sum =" : "sum +="} (${products.join("\n    + ")}) * scale_${g}${zeros ? ".x" : ""};`;
  });
  return `fn ${name}_ready(v: vec4f) -> vec4f { return v / ${powers}; }
fn ${name}_number(codes: vec4u, zero: vec4f) -> vec4f {
  return bitcast<vec4f>((codes & ${masks}) | vec4u(0x4b000000u)) - zero;
}
fn ${name}_dot(row: u32, k8: u32${x}) -> f32 {
  let at = row * (${columns} / 8u) + k8;
  let codes = ${read};
${groups.join("\n")}
  return sum;
}`;
}

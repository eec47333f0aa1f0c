import type { WeightFormat } from "./gpu-matrix.js";
import { range } from "./range.js";

/** Columns of x that a thread packs at once. */
export const packedColumns = 32;
/** Largest of the numbers that columns of x become. */
const most = 32767;

/** Codes of few bits: those that `packedDotCode` knows. */
type Codes = Extract<WeightFormat, { kind: "quantized" }>;

/** Whether a format's codes are multiplied as bytes: those of few bits, which cost more to take apart than to read. */
export const canPack = (format: WeightFormat): format is Codes & { bits: 2 | 4 } =>
  format.kind === "quantized" && format.bits < 8;

/**
 * WGSL of two functions that multiply 32 neighbouring columns of x with the codes of a row of the part, four products to an
 * instruction (WGSL language extension `packed_4x8_integer_dot_product`):
 * `fn <name>_pack(v: array<vec4f, 8>) -> Packed`, to which the columns are put once for all rows, and `fn <name>_dot(row, k8, x: Packed)`.
 *
 * x becomes whole numbers of 16 bits, in steps of the largest of the 32 columns / 32767, each of a high byte with a sign and a low
 * one without; what they give with codes is exact. So x is rounded by at most 1 / 65534 of the largest of its 32 columns, a sixteenth
 * of what float16 rounds that one by.
 * @param columns WGSL expression of the number of stored columns, which 32 divides
 */
export function packedDotCode(
  name: string,
  { bits, groupSize, zeros }: Codes & { bits: 2 | 4 },
  columns: string,
): string {
  const inWord = 32 / bits;
  const shifts = 8 / bits;
  const mask = bits === 4 ? "0x0f0f0f0fu" : "0x03030303u";
  // A byte of a word holds `shifts` codes: those at one place in all four bytes are multiplied together.
  const packs = range(packedColumns / inWord).flatMap((word) =>
    range(shifts).map((shift) => {
      const columnsOf = range(4).map((byte) => word * inWord + byte * shifts + shift);
      return {
        columns: columnsOf.map((at) => `v[${Math.floor(at / 4)}][${at % 4}]`).join(", "),
        codes: `((codes[${word}] >> ${bits * shift}u) & ${mask})`,
        group: Math.floor((word * inWord) / Math.min(groupSize, packedColumns)),
      };
    }),
  );
  const groups = range(Math.max(1, packedColumns / groupSize));
  const own = (group: number) => range(packs.length).filter((i) => packs[i]?.group === group);
  const total = (high: string[], low: string[]) =>
    `f32(256 * (${high.join(" + ")}) + i32(${low.join(" + ")}))`;
  return `struct Packed {
  high: array<u32, ${packs.length}>,
  low: array<u32, ${packs.length}>,
  sums: array<f32, ${groups.length}>,
  step: f32,
}
fn ${name}_pack(v: array<vec4f, ${packedColumns / 4}>) -> Packed {
  let largest = ${range(packedColumns / 4 - 1).reduce((sum, i) => `max(${sum}, abs(v[${i + 1}]))`, "abs(v[0])")};
  let top = max(max(largest.x, largest.y), max(largest.z, largest.w));
  let factor = select(0.0, ${most}.0 / top, top > 0.0);
  var x: Packed;
  x.step = top / ${most}.0;
${packs
  .map(
    // In the mantissa of 1.5 times 2^23 a number of 16 bits is whole, and stands in two's complement.
    ({ columns: own }, i) => `  let q_${i} = bitcast<vec4u>(vec4f(${own}) * factor + 12582912.0);
  x.high[${i}] = pack4xU8(q_${i} >> vec4u(8u));
  x.low[${i}] = pack4xU8(q_${i});`,
  )
  .join("\n")}
${groups
  .map((group) => {
    const ones = (of: string) =>
      own(group).map((i) => `${of}(0x01010101u, x.${of === "dot4I8Packed" ? "high" : "low"}[${i}])`);
    return `  x.sums[${group}] = ${total(ones("dot4I8Packed"), ones("dot4U8Packed"))};`;
  })
  .join("\n")}
  return x;
}
fn ${name}_dot(row: u32, k8: u32, x: Packed) -> f32 {
  let at = row * (${columns} / 8u) + k8;
  let codes = ${name}[at / 4u];
  var sum = 0.0;
${groups
  .map((group) => {
    const products = (of: string, part: string) =>
      own(group).map((i) => `${of}(${packs[i]?.codes}, x.${part}[${i}])`);
    return `  let scale_${group} = ${name}_scales[at / ${groupSize / 8}u${group > 0 ? ` + ${group}u` : ""}];
  sum += (${total(products("dot4I8Packed", "high"), products("dot4U8Packed", "low"))}
    - ${zeros ? `scale_${group}.y` : `${2 ** (bits - 1)}.0`} * x.sums[${group}]) * scale_${group}${zeros ? ".x" : ""};`;
  })
  .join("\n")}
  return sum * x.step;
}`;
}

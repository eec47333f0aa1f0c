import { CoppiceError, quantizedBits, type TensorRef } from "@coppice/core";
import type { ConfigReader } from "../config.js";
import type { JsonObject } from "../json-object.js";
import type { NameIndex } from "./name-index.js";
import { checkShape, type TensorTaker } from "./tensor-taker.js";

/** Bits of the words that codes are packed into. */
const wordBits = 32;

/**
 * Whether the packed integers that a config announces are of the one kind that is decoded: `pack-quantized` of
 * compressed-tensors, with 2, 4 or 8 bits and one scale per group or row of a weight.
 * @param found the object `quantization_config`
 */
export function packsReadably(found: ConfigReader): boolean {
  const groups = found.object("config_groups");
  const names = groups?.keys() ?? [];
  const format = found.get("format")?.value;
  return (
    found.string("quant_method") === "compressed-tensors" &&
    names.length > 0 &&
    names.every((name) => {
      const group = groups?.object(name)?.get("weights")?.value as JsonObject | undefined;
      const own = groups?.object(name)?.get("format")?.value ?? format;
      if (typeof group !== "object" || group === null || own !== "pack-quantized") return false;
      const { num_bits, type = "int", strategy, dynamic = false } = group;
      const isKnown = (quantizedBits as readonly unknown[]).includes(num_bits) && type === "int";
      return isKnown && (strategy === "group" || strategy === "channel") && dynamic !== true;
    })
  );
}

/** True for a packed weight that can be decoded where the config says so: columns that were sorted cannot. */
export function isReadablePack({ name, dtype, shape }: TensorRef, index: NameIndex): boolean {
  const base = name.slice(0, name.lastIndexOf(".") + 1);
  const zeros = index.get(`${base}weight_zero_point`);
  return (
    name.endsWith(".weight_packed") &&
    dtype === "I32" &&
    shape.length === 2 &&
    index.get(`${base}weight_scale`)?.shape.length === 2 &&
    !index.has(`${base}weight_g_idx`) &&
    (zeros === undefined || zeros.dtype === "I32")
  );
}

/**
 * The matrix `base` [N, K], whose codes are packed.
 * @throws COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_MISSING_TENSOR, COPPICE_FORMAT_DTYPE
 */
export function packedMatrix(take: TensorTaker, base: string, [N, K]: readonly [number, number]): TensorRef {
  const packed = take.any(`${base}.weight_packed`, [N, K]);
  const bits = quantizedBits.find((one) => packed.shape[1] === (K * one) / wordBits);
  const scales = take.float(take.any(`${base}.weight_scale`, [N]));
  const groups = scales.shape[1] ?? 0;
  if (bits === undefined || packed.shape[0] !== N || groups === 0 || ((K / groups) * bits) % 8 !== 0) {
    throw new CoppiceError(
      "COPPICE_FORMAT_SHAPE",
      `tensor ${packed.name} has shape [${packed.shape.join(", ")}] and ${groups} scales per row; a weight ` +
        `[${N}, ${K}] has ${quantizedBits.map((one) => `[${N}, ${(K * one) / wordBits}]`).join(" or ")} words of ` +
        `${quantizedBits.join(" or ")} bits each, in groups of whole bytes`,
      { details: { tensor: packed.name, shape: packed.shape, scales: scales.shape } },
    );
  }
  checkShape(scales, [N, groups]);
  const zeroPoints = take.optional(`${base}.weight_zero_point`);
  if (zeroPoints) checkShape(zeroPoints, [Math.ceil((N * bits) / wordBits), groups]);
  take.ignore(`${base}.weight_shape`);
  return {
    ...packed,
    shape: [N, K],
    scales: {
      format: "packed",
      stored: [N, K],
      rows: 1,
      columns: K / groups,
      scales,
      bits,
      ...(zeroPoints && { zeroPoints }),
    },
  };
}

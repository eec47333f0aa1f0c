import { CoppiceError, type DType, elementCount, type TensorRef, type TensorScales } from "@coppice/core";
import type { ConfigReader } from "../config.js";
import { showValue } from "../json-object.js";
import { packsReadably } from "./packed-weights.js";

/** What config.json says about quantized weights. */
export interface Quantization {
  /** `quant_method`, for messages; undefined: the config says nothing. */
  readonly method: string | undefined;
  /** Rows and columns that share a scale in fp8 checkpoints. */
  readonly block: readonly [number, number];
  /** Packed integers are of the kind that is decoded (`packedMatrix`). */
  readonly readable: boolean;
}

/** Block of DeepSeek-V3's own fp8 checkpoints, which theirs alone may leave out. */
const defaultBlock = [128, 128] as const;

/** Reads `quantization_config`, or `compression_config` as older compressed-tensors files call it. */
export function readQuantization(config: ConfigReader): Quantization {
  const found = config.object("quantization_config") ?? config.object("compression_config");
  if (!found) return { method: undefined, block: defaultBlock, readable: false };
  const method = found.string("quant_method") ?? found.string("quant_algo") ?? "unnamed";
  const groups = found.object("config_groups");
  const group = groups?.object(groups.keys()[0] ?? "");
  const block = found.get("weight_block_size")?.value ?? group?.get("weights.block_structure")?.value;
  const readable = packsReadably(found);
  if (block === undefined) return { method, block: defaultBlock, readable };
  if (!isBlock(block)) throw found.invalid("weight_block_size", block, "two integers from 1");
  return { method, block, readable };
}

function isBlock(value: unknown): value is [number, number] {
  return (
    Array.isArray(value) && value.length === 2 && value.every((size) => Number.isInteger(size) && size >= 1)
  );
}

/** Siblings of a weight that this release knows, as the ends of names in place of `weight`, and what each needs. */
const knownSiblings: ReadonlyMap<string, readonly string[]> = new Map([
  ["weight", []],
  ["bias", []],
  ["weight_scale_inv", ["weight"]],
  ["weight_scale", ["weight|weight_packed"]],
  ["weight_scale_2", ["weight", "weight_scale"]],
  ["weight_zero_point", ["weight_scale"]],
  ["weight_packed", ["weight_scale"]],
  ["weight_shape", ["weight_packed"]],
  ["weight_g_idx", ["weight_packed"]],
  ["weight_global_scale", ["weight_packed"]],
  ["input_global_scale", ["weight_packed"]],
  ["input_scale", ["weight|weight_packed"]],
  ["input_zero_point", ["input_scale"]],
  ["activation_scale", ["weight"]],
  ["qweight", ["scales", "qzeros"]],
  ["qzeros", ["qweight"]],
  ["scales", ["qweight"]],
  ["g_idx", ["qweight"]],
  ["SCB", ["weight"]],
  ["weight_format", ["weight"]],
]);

/** bitsandbytes keeps the state of its quantization below the weight's own name. */
const bitsAndBytes =
  /^weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)$/;

/** Ends of the names of weights that only their own kernels unpack. */
const packedEnd =
  /\.(qweight|weight_packed|weight_scale_2|weight\.quant_state\.bitsandbytes__\w+|weight\.absmax|SCB)$/;
const packedTypes: readonly DType[] = ["U8", "I8", "I32"];

/** True for a tensor that shows that the checkpoint's weights are packed integers. */
export function isPacked({ name, dtype }: TensorRef): boolean {
  return packedEnd.test(name) || (name.endsWith(".weight") && packedTypes.includes(dtype));
}

/**
 * Checks the tensors of one weight.
 * @param base what their names begin with, without the dot
 * @param ends the ends of the names found
 * @throws COPPICE_FORMAT_QUANTIZED
 */
export function checkSiblings(base: string, ends: ReadonlySet<string>): void {
  for (const end of ends) {
    const needs = bitsAndBytes.test(end) ? ["weight"] : knownSiblings.get(end);
    if (!needs) {
      throw new CoppiceError(
        "COPPICE_FORMAT_QUANTIZED",
        `tensor ${base}.${end.slice(0, 80)} is of no known kind; known beside weights are ${[...knownSiblings.keys()].slice(1).join(", ")}`,
        {
          hint: "dropping experts would tear it from its weight; give the original checkpoint",
          details: { tensor: `${base}.${end}` },
        },
      );
    }
    for (const need of needs) {
      if (!need.split("|").some((one) => ends.has(one)))
        throw missingSibling(`${base}.${end}`, `${base}.${need}`);
    }
  }
}

export function missingSibling(tensor: string, sibling: string): CoppiceError {
  return new CoppiceError(
    "COPPICE_FORMAT_QUANTIZED",
    `tensor ${tensor} has no ${sibling} beside it, without which its values mean nothing`,
    { hint: "download the checkpoint again, all files of one revision", details: { tensor, sibling } },
  );
}

const float8: readonly DType[] = ["F8_E4M3", "F8_E5M2"];
const scaleTypes: readonly DType[] = ["F64", "F32", "F16", "BF16", "F8_E8M0"];

/**
 * The stored matrix with the scales that belong to it; itself when it has none.
 * @param stored shape [R, C]
 * @param scales the tensor beside it, if there is one; of any shape that gives one scale to all, to each row or to
 * each block
 * @throws COPPICE_FORMAT_QUANTIZED, COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_DTYPE
 */
export function withScales(
  stored: TensorRef,
  scales: TensorRef | undefined,
  { method, block }: Quantization,
): TensorRef {
  if (!float8.includes(stored.dtype)) {
    if (!scales) return stored;
    throw new CoppiceError(
      "COPPICE_FORMAT_QUANTIZED",
      `tensor ${stored.name} is ${stored.dtype} and has scales in ${scales.name}, which only fp8 weights should have`,
      { details: { tensor: stored.name, scales: scales.name } },
    );
  }
  if (!scales) {
    // Plain fp8 values without scales exist; a config that announces quantization means scales.
    if (method === undefined) return stored;
    throw missingSibling(stored.name, `${stored.name}_scale_inv`);
  }
  if (!scaleTypes.includes(scales.dtype)) {
    throw new CoppiceError(
      "COPPICE_FORMAT_DTYPE",
      `scales ${scales.name} have dtype ${scales.dtype}, expected one of ${scaleTypes.join(", ")}`,
      { details: { tensor: scales.name, dtype: scales.dtype } },
    );
  }
  const [R, C] = stored.shape as [number, number];
  const [rows, columns] = scaleBlock(scales, R, C, block);
  const shape = [Math.ceil(R / rows), Math.ceil(C / columns)];
  const found: TensorScales = {
    format: "scaled",
    stored: [R, C],
    rows,
    columns,
    scales: { ...scales, shape },
  };
  return { ...stored, scales: found };
}

function scaleBlock(
  { name, shape }: TensorRef,
  R: number,
  C: number,
  [rows, columns]: readonly [number, number],
): readonly [number, number] {
  const count = elementCount(shape);
  const [first, second] = shape;
  if (shape.length === 2 && first === Math.ceil(R / rows) && second === Math.ceil(C / columns)) {
    return [rows, columns];
  }
  if (count === 1) return [R, C];
  if (count === R && first === R) return [1, C];
  throw new CoppiceError(
    "COPPICE_FORMAT_SHAPE",
    `scales ${name} have shape ${showValue(shape)}; a weight [${R}, ${C}] has one for all, one for each of its rows, ` +
      `or [${Math.ceil(R / rows)}, ${Math.ceil(C / columns)}] for blocks of ${rows} x ${columns}`,
    { details: { tensor: name, shape } },
  );
}

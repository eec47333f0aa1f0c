import { readFile } from "node:fs/promises";
import {
  loadModel,
  memoryFolder,
  parseSafetensors,
  serializeSafetensors,
  type TensorBytes,
} from "@coppice/checkpoint";
import { type DType, dtypeBytes, elementCount, Rng } from "@coppice/core";
import { bytesOf, type Files, fixtures } from "./helpers.js";

export type Tensors = Map<string, TensorBytes>;

/** Random values around 0, of any float dtype that takes whole bytes of small numbers. */
export function randomTensor(rng: Rng, shape: readonly number[], dtype: DType = "F32"): TensorBytes {
  const count = elementCount(shape);
  const bytes = new Uint8Array(count * dtypeBytes[dtype]);
  if (dtype === "F32") {
    new Float32Array(bytes.buffer).set(Float32Array.from({ length: count }, () => rng.normal() * 0.1));
  } else if (dtype === "BF16") {
    const words = new Uint16Array(bytes.buffer);
    const floats = Float32Array.from({ length: count }, () => rng.normal() * 0.1);
    const bits = new Uint32Array(floats.buffer);
    for (let i = 0; i < count; i++) words[i] = (bits[i] as number) >>> 16;
  } else {
    // F8_E4M3 of moderate size, or any byte of packed integers; never NaN (0x7f, 0xff).
    for (let i = 0; i < bytes.length; i++) bytes[i] = rng.integer(0x60);
  }
  return { dtype, shape: [...shape], bytes };
}

/** Tensors of these names and shapes. */
export function randomTensors(
  shapes: Iterable<readonly [name: string, shape: readonly number[], dtype?: DType]>,
  seed = 1,
): Tensors {
  const rng = Rng.fromSeed(seed);
  return new Map([...shapes].map(([name, shape, dtype]) => [name, randomTensor(rng, shape, dtype)]));
}

/** The tensors and config of a fixture. */
export async function fixture(
  family: string,
): Promise<{ tensors: Tensors; config: Record<string, unknown> }> {
  const bytes = await readFile(`${fixtures}${family}/model.safetensors`);
  const config = JSON.parse(await readFile(`${fixtures}${family}/config.json`, "utf8")) as Record<
    string,
    unknown
  >;
  return { tensors: new Map((await parseSafetensors(new Uint8Array(bytes), family)).tensors), config };
}

export const loadMade = (config: object, tensors: Tensors) =>
  loadModel(memoryFolder(madeFiles(config, tensors)));

export function madeFiles(config: object, tensors: Tensors): Files {
  return new Map([
    ["config.json", bytesOf(JSON.stringify(config))],
    ["model.safetensors", serializeSafetensors(tensors)],
  ]);
}

/** Values of an F32 tensor. */
export function floats({ dtype, bytes }: TensorBytes): Float32Array {
  if (dtype !== "F32") throw new Error(`${dtype}, expected F32`);
  return new Float32Array(bytes.slice().buffer);
}

/** [rows, columns] to [columns, rows]. */
export function transposed(values: Float32Array, rows: number, columns: number): Float32Array {
  return Float32Array.from({ length: values.length }, (_, i) => {
    const [column, row] = [Math.floor(i / rows), i % rows];
    return values[row * columns + column] as number;
  });
}

export function f32(shape: readonly number[], values: ArrayLike<number>): TensorBytes {
  return { dtype: "F32", shape: [...shape], bytes: new Uint8Array(Float32Array.from(values).buffer) };
}

export function concatenate(parts: readonly Float32Array[]): Float32Array {
  return Float32Array.from(parts.flatMap((part) => [...part]));
}

import { CoppiceError, type DType, type TensorRef } from "@coppice/core";
import type { NameIndex } from "./name-index.js";
import type { Naming } from "./naming.js";
import { packedMatrix } from "./packed-weights.js";
import { type Quantization, withScales } from "./quantization.js";

/** Weights that can be read and merged as numbers. */
const weightTypes: readonly DType[] = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"];
/** Buffers that every runtime computes anew, and scales of activations and caches that float arithmetic needs not. */
const ignoredTensors =
  /\.(rotary_emb\.inv_freq|input_scale|activation_scale|[kv]_scale|[kv]_proj\.output_scale)$/;

/** Looks up tensors, checks them and remembers which were asked for. */
export class TensorTaker {
  readonly index: NameIndex;
  readonly quantization: Quantization;
  readonly #naming: Naming;
  readonly #taken = new Set<string>();

  constructor(index: NameIndex, naming: Naming, quantization: Quantization) {
    this.index = index;
    this.quantization = quantization;
    this.#naming = naming;
  }

  /** The checkpoint's name for a pattern of the family. */
  name(pattern: string, layer?: number, expert?: number): string {
    return this.#naming.name(pattern, layer, expert);
  }

  /** @throws COPPICE_FORMAT_MISSING_TENSOR, COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_DTYPE */
  tensor(name: string, shape: readonly number[]): TensorRef {
    const ref = this.any(name, shape);
    checkShape(ref, shape);
    return this.float(ref);
  }

  /** The tensor, of whatever shape and dtype; `shape` is for messages. @throws COPPICE_FORMAT_MISSING_TENSOR */
  any(name: string, shape: readonly number[]): TensorRef {
    const ref = this.index.get(name);
    if (!ref) {
      throw new CoppiceError(
        "COPPICE_FORMAT_MISSING_TENSOR",
        `tensor ${name} is missing, expected of shape [${shape.join(", ")}] by config.json`,
        { details: { tensor: name, shape } },
      );
    }
    this.#taken.add(name);
    return ref;
  }

  /** @throws COPPICE_FORMAT_DTYPE when it holds no floats */
  float(ref: TensorRef): TensorRef {
    if (weightTypes.includes(ref.dtype)) return ref;
    throw new CoppiceError(
      "COPPICE_FORMAT_DTYPE",
      `tensor ${ref.name} has dtype ${ref.dtype}, expected one of ${weightTypes.join(", ")}`,
      { hint: "give the original checkpoint", details: { tensor: ref.name, dtype: ref.dtype } },
    );
  }

  /**
   * The matrix `base.weight` with the scales beside it, or the packed codes that stand in its place.
   * @throws as `tensor`, COPPICE_FORMAT_QUANTIZED
   */
  weight(base: string, shape: readonly [number, number]): TensorRef {
    if (!this.index.has(`${base}.weight`) && this.index.has(`${base}.weight_packed`)) {
      return packedMatrix(this, base, shape);
    }
    const ref = this.tensor(`${base}.weight`, shape);
    return withScales(
      ref,
      this.optional(`${base}.weight_scale_inv`, `${base}.weight_scale`),
      this.quantization,
    );
  }

  /** The first of these that there is. */
  optional(...names: readonly string[]): TensorRef | undefined {
    const name = names.find((one) => this.index.has(one));
    if (name === undefined) return undefined;
    this.#taken.add(name);
    return this.index.get(name);
  }

  ignore(...names: readonly string[]): void {
    for (const name of names) this.#taken.add(name);
  }

  isTaken(name: string): boolean {
    return this.#taken.has(name) || ignoredTensors.test(name);
  }
}

/** @throws COPPICE_FORMAT_SHAPE unless the tensor has the shape that the config asks for */
export function checkShape({ name, shape }: TensorRef, expected: readonly number[]): void {
  if (shape.length === expected.length && shape.every((size, i) => size === expected[i])) return;
  throw new CoppiceError(
    "COPPICE_FORMAT_SHAPE",
    `tensor ${name} has shape [${shape.join(", ")}], expected [${expected.join(", ")}] by config.json`,
    { details: { tensor: name, shape, expected } },
  );
}

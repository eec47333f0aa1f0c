import { CoppiceError, elementCount, type TensorRef } from "@coppice/core";
import { ConfigReader } from "../config.js";
import { describeExecuted } from "../families/describe.js";
import type { ExpertLayout, FamilyDescription } from "../families/family.js";
import { NameIndex } from "../families/name-index.js";
import { findNaming, type Naming } from "../families/naming.js";
import { readSettings } from "../families/settings.js";
import { TensorTaker } from "../families/tensor-taker.js";
import type { JsonObject } from "../json-object.js";

/** A tensor that a family asks for. */
export interface SyntheticShape {
  readonly name: string;
  /** As it is stored, unquantized. */
  readonly shape: readonly number[];
  /** `matrix`: a linear layer; `stack`: matrices of all experts, as [experts, outputs, inputs] unless `turned`. */
  readonly kind: "matrix" | "stack" | "norm" | "other";
  readonly turned?: true;
}

/**
 * Every tensor of a model of the family, in the order in which its description asks for them.
 * @throws COPPICE_USAGE when the family is edited only, COPPICE_FORMAT_CONFIG
 */
export function syntheticShapes(
  family: FamilyDescription,
  layout: ExpertLayout,
  config: JsonObject,
): SyntheticShape[] {
  if (family.editOnly !== undefined) {
    throw new CoppiceError("COPPICE_USAGE", `${family.name} cannot be made up: ${family.editOnly}`);
  }
  const reader = new ConfigReader(config, "config.json");
  const take = new ShapeRecorder(findNaming(family, new Map()), layout);
  const settings = readSettings(family, reader, reader, new ConfigReader({}, "generation_config.json"));
  const isMoe = family.moeLayers?.(reader) ?? (() => true);
  describeExecuted({ family, config: reader, settings, take }, layout, isMoe);
  return [...take.shapes.values()];
}

/** Answers every question for a tensor and notes it. */
class ShapeRecorder extends TensorTaker {
  readonly shapes = new Map<string, SyntheticShape>();
  readonly #turned: boolean;

  constructor(naming: Naming, layout: ExpertLayout) {
    super(new NameIndex(new Map()), naming, { method: undefined, block: [128, 128], readable: false });
    this.#turned = layout.kind === "fused" && (layout.order === "columns" || layout.order === "interleaved");
  }

  override any(name: string, shape: readonly number[]): TensorRef {
    const isStack = shape.length === 3;
    const turned = isStack && this.#turned;
    const stored = turned ? [shape[0] as number, shape[2] as number, shape[1] as number] : shape;
    const kind = isStack ? "stack" : /norm(\.weight)?$/.test(name) ? "norm" : "other";
    this.shapes.set(name, { name, shape: stored, kind, ...(turned && { turned }) });
    return { name, dtype: "F32", shape: stored, file: "", begin: 0, end: 4 * elementCount(stored) };
  }

  override weight(base: string, shape: readonly [number, number]): TensorRef {
    const ref = super.weight(base, shape);
    this.shapes.set(ref.name, { name: ref.name, shape, kind: "matrix" });
    return ref;
  }
}

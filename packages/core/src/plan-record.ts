import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { CoppiceError } from "./errors.js";
import { type MlpSpec, type MoeModel, type MoeSpec, moeLayers } from "./model.js";
import type { Plan } from "./plan.js";

/** Stands in the record of a plan for values that are in the written weights. */
export interface RecordedValues {
  /** Of the values: `down` [slots, hidden, width], `router.weight` [slots, hidden]. */
  readonly shape: readonly number[];
  /** SHA-256 of the text that the plan has, 64 hex digits. */
  readonly sha256: string;
}

/**
 * Most characters of packed values that a record keeps. Packed values of models that are of use take more, and shorter ones
 * make no folder larger than the blocks of a file system do.
 */
const keptCharacters = 4096;

/** Where a layer plan has packed values. */
const packedParts = ["down", "router.weight"] as const;
type PackedPart = (typeof packedParts)[number];

/**
 * What a written folder keeps of the plan that was applied: all of it, with `RecordedValues` in place of long packed values
 * (changes of down projections, router rows). They take megabytes and are in the weights already; `parsePlan` refuses a
 * record that lacks them, `checkRecord` finds whether it is that of a plan.
 * @param plan a plan for `model` or for what it was made from, or its record; may be unchecked: what is no plan stays as it is
 */
export function recordPlan(plan: unknown, model: MoeModel): unknown {
  if (!isObject(plan) || !Array.isArray(plan.layers)) return plan;
  const specs = new Map(moeLayers(model).map(({ index, feedForward }) => [index as unknown, feedForward]));
  return {
    ...plan,
    layers: plan.layers.map((layer: unknown) => {
      const spec = isObject(layer) ? specs.get(layer.layer) : undefined;
      return spec && isObject(layer) ? recordLayer(layer, spec) : layer;
    }),
  };
}

function recordLayer(layer: UncheckedObject, spec: MoeSpec): UncheckedObject {
  if (!Array.isArray(layer.experts)) return layer;
  const slots = layer.experts.length;
  const recorded = (part: PackedPart, shape: () => readonly number[]): RecordedValues | undefined => {
    const value = packedPart(layer, part);
    if (typeof value !== "string" || value.length <= keptCharacters) return undefined;
    return { shape: [slots, ...shape()], sha256: hashText(value) };
  };
  // Experts of one layer are equal in shape.
  const down = recorded("down", () => (spec.experts[0] as MlpSpec).down.shape);
  const weight = recorded("router.weight", () => spec.router.weight.shape.slice(1));
  return {
    ...layer,
    ...(down && { down }),
    ...(weight && { router: { ...(layer.router as object), weight } }),
  };
}

/**
 * Compares packed values of a plan with what a folder recorded of its own. All else of a plan, and layers with other experts,
 * show in the weights. A record of a plan for another model says nothing about this one.
 * @param record unchecked, of this release or of an older one, which kept all values
 * @throws COPPICE_VERIFY_DIFFERENT with both hashes
 */
export function checkRecord(record: unknown, plan: Plan): void {
  if (!isObject(record) || !isObject(record.model) || !Array.isArray(record.layers)) return;
  if (record.model.fingerprint !== plan.model.fingerprint) return;
  for (const entry of record.layers as unknown[]) {
    if (!isObject(entry)) continue;
    const layer = plan.layers.find((one) => one.layer === entry.layer);
    if (!layer || layer.experts.join() !== String(entry.experts)) continue;
    for (const part of packedParts) {
      const [expected, found] = [hashOf(packedPart(entry, part)), hashOf(packedPart(layer, part))];
      if (expected === undefined || expected === found) continue;
      throw new CoppiceError(
        "COPPICE_VERIFY_DIFFERENT",
        `${part} of layer ${layer.layer} in the plan ${found === undefined ? "is absent" : `has the SHA-256 ${found}`}; ` +
          `the checkpoint was written from values with ${expected}`,
        {
          hint: "give the plan that the checkpoint was written from",
          details: { layer: layer.layer, part, expected, found: found ?? null },
        },
      );
    }
  }
}

/** Whether something unchecked stands where a record left values out. */
export function isRecordedValues(value: unknown): value is RecordedValues {
  return isObject(value) && Array.isArray(value.shape) && typeof value.sha256 === "string";
}

/** The error of whoever needs the values of a record. */
export function valuesLeftOut({ shape, sha256 }: RecordedValues, where: string): CoppiceError {
  const size = JSON.stringify(shape).slice(0, 80);
  return new CoppiceError(
    "COPPICE_PLAN_RECORD",
    `${where} is only the hash of its values (shape ${size}, SHA-256 ${sha256.slice(0, 64)}): they are in the written weights`,
    { hint: "give the plan file that was applied, such as --plan run/plan.json" },
  );
}

type UncheckedObject = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is UncheckedObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function packedPart(layer: object, part: PackedPart): unknown {
  const { down, router } = layer as UncheckedObject;
  if (part === "down") return down;
  return isObject(router) ? router.weight : undefined;
}

function hashOf(value: unknown): string | undefined {
  if (typeof value === "string") return hashText(value);
  return isRecordedValues(value) ? value.sha256.slice(0, 64) : undefined;
}

function hashText(text: string): string {
  return bytesToHex(sha256(utf8ToBytes(text)));
}

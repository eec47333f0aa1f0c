import { CoppiceError, type MoeModel } from "@coppice/core";
import {
  checkModel,
  type DroppedLoss,
  type ExpertLoss,
  type MatrixLoss,
  type Sensitivity,
  type WidthLoss,
} from "./sensitivity.js";

/** Most matrices or experts of a table: models of a trillion parameters have some 100,000 matrices. */
const entryLimit = 2 ** 21;
/** Most widths of a matrix. */
const widthLimit = 64;

/**
 * Checks a sensitivity that was read from JSON.
 * @throws COPPICE_STATS_FORMAT, COPPICE_STATS_MODEL when it was measured on another model
 */
export function parseSensitivity(value: unknown, model: MoeModel): Sensitivity {
  const object = objectOf(value, "the sensitivity");
  const sensitivity = {
    model: textOf(object, "model", "the sensitivity"),
    quantized: quantizedOf(object),
    positions: countOf(object, "positions", "the sensitivity"),
    matrices: listOf(object, "matrices", entryLimit, "the sensitivity").map(matrixOf),
    experts: listOf(object, "experts", entryLimit, "the sensitivity").map(expertOf),
  };
  checkModel(model, sensitivity);
  return sensitivity;
}

function quantizedOf({ quantized }: Entries): Sensitivity["quantized"] {
  if (quantized === "experts" || quantized === "matrices") return quantized;
  throw malformed(`quantized of the sensitivity is ${shown(quantized)}, expected "experts" or "matrices"`);
}

function matrixOf(value: unknown, i: number): MatrixLoss {
  const where = `matrix ${i} of the sensitivity`;
  const object = objectOf(value, where);
  return {
    name: textOf(object, "name", where),
    role: textOf(object, "role", where),
    ...("layer" in object && { layer: countOf(object, "layer", where) }),
    ...("expert" in object && { expert: countOf(object, "expert", where) }),
    widths: listOf(object, "widths", widthLimit, where).map((width) => widthOf(width, where)),
  };
}

function widthOf(value: unknown, where: string): WidthLoss {
  const object = objectOf(value, `a width of ${where}`);
  return {
    bits: countOf(object, "bits", where),
    loss: amountOf(object, "loss", where),
    ...("error" in object && { error: amountOf(object, "error", where) }),
  };
}

function expertOf(value: unknown, i: number): ExpertLoss {
  const where = `expert ${i} of the sensitivity`;
  const object = objectOf(value, where);
  return {
    layer: countOf(object, "layer", where),
    expert: countOf(object, "expert", where),
    share: amountOf(object, "share", where),
    gateShare: amountOf(object, "gateShare", where),
    ...("dropped" in object && { dropped: droppedOf(object.dropped, where) }),
  };
}

function droppedOf(value: unknown, where: string): DroppedLoss {
  const object = objectOf(value, `"dropped" of ${where}`);
  return { loss: amountOf(object, "loss", where), error: amountOf(object, "error", where) };
}

type Entries = Readonly<Record<string, unknown>>;

function objectOf(value: unknown, what: string): Entries {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    // Own keys alone, so that no name reaches a prototype.
    return Object.assign(Object.create(null), value) as Entries;
  }
  throw malformed(`${what} is ${shown(value)}, expected an object`);
}

function listOf(object: Entries, key: string, limit: number, where: string): unknown[] {
  const value = object[key];
  if (Array.isArray(value) && value.length <= limit) return value;
  throw malformed(`${key} of ${where} is ${shown(value)}, expected a list of at most ${limit}`);
}

function textOf(object: Entries, key: string, where: string): string {
  const value = object[key];
  if (typeof value === "string") return value;
  throw malformed(`${key} of ${where} is ${shown(value)}, expected text`);
}

function countOf(object: Entries, key: string, where: string): number {
  const value = object[key];
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw malformed(`${key} of ${where} is ${shown(value)}, expected a whole number of at least 0`);
}

function amountOf(object: Entries, key: string, where: string): number {
  const value = object[key];
  if (typeof value === "number" && Number.isFinite(value) && value >= 0) return value;
  throw malformed(`${key} of ${where} is ${shown(value)}, expected a number of at least 0`);
}

function shown(value: unknown): string {
  if (Array.isArray(value)) return `a list of ${value.length}`;
  return typeof value === "object" && value !== null
    ? "an object"
    : (JSON.stringify(value)?.slice(0, 100) ?? "absent");
}

function malformed(message: string): CoppiceError {
  return new CoppiceError("COPPICE_STATS_FORMAT", message, { hint: "measure it again" });
}

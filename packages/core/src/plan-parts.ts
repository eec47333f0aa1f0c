import type { MlpSpec, MoeSpec } from "./model.js";
import { countBfloat16, unpackBfloat16, unpackFloats } from "./packed-floats.js";
import type { RouterRows, SkipRule, UnitSource } from "./plan.js";
import { isRecordedValues, valuesLeftOut } from "./plan-record.js";
import { array, coefficient, coefficients, integer, invalid, record, show } from "./plan-values.js";

/** Rows of a merge or router map, one per slot. */
export function parseRows(
  value: unknown,
  where: string,
  slots: number,
  experts: number,
): number[][] | undefined {
  if (value === undefined) return undefined;
  const rows = array(value, where);
  if (rows.length !== slots) {
    throw invalid(`${where} has ${rows.length} rows, expected ${slots}, one per slot`);
  }
  return rows.map((row, i) => coefficients(row, `${where}[${i}]`, experts, "expert"));
}

export function parseUnits(
  value: unknown,
  where: string,
  experts: readonly number[],
  spec: MoeSpec,
): (UnitSource[] | null)[] {
  const slots = array(value, where);
  if (slots.length !== experts.length) {
    throw invalid(`${where} has ${slots.length} entries, expected ${experts.length}, one per slot`);
  }
  return slots.map((slot, i) => {
    if (slot === null) return null;
    const sources = array(slot, `${where}[${i}]`).map((source, j) =>
      parseSource(source, `${where}[${i}][${j}]`, spec),
    );
    // One order, so that equal plans round equally.
    const disorder = sources.findIndex(({ expert }, j) => j > 0 && expert <= (sources[j - 1]?.expert ?? -1));
    if (disorder >= 0) {
      throw invalid(`${where}[${i}] lists expert ${sources[disorder]?.expert} out of ascending order`);
    }
    return sources;
  });
}

function parseSource(value: unknown, where: string, { experts }: MoeSpec): UnitSource {
  const source = record(value, where, ["expert", "to", "rows", "columns"]);
  const expert = integer(source.expert, `${where}.expert`);
  const spec = experts[expert];
  if (!spec) throw invalid(`${where}.expert is ${expert}; the layer has experts 0 to ${experts.length - 1}`);
  const { width } = spec;
  const to = array(source.to, `${where}.to`);
  if (to.length !== width)
    throw invalid(`${where}.to has ${to.length} values, expected ${width}, one per unit`);
  const factor = (key: "rows" | "columns") =>
    Array.isArray(source[key])
      ? coefficients(source[key], `${where}.${key}`, width, "unit")
      : coefficient(source[key], `${where}.${key}`);
  return {
    expert,
    to: to.map((target, i) => {
      const unit = integer(target, `${where}.to[${i}]`);
      if (unit < -1 || unit >= width)
        throw invalid(`${where}.to[${i}] is ${unit}, expected -1 to ${width - 1}`);
      return unit;
    }),
    rows: factor("rows"),
    columns: factor("columns"),
  };
}

export function parseRouter(
  value: unknown,
  where: string,
  experts: readonly number[],
  { router }: MoeSpec,
): RouterRows {
  const rows = record(value, where, ["weight", "bias", "correction"]);
  const { weight } = rows;
  const text = packed(weight, `${where}.weight`);
  const hidden = router.weight.shape[1] as number;
  unpacked(() => unpackFloats(text, { count: experts.length * hidden, what: `${where}.weight` }));
  const perSlot = (key: "bias" | "correction") => {
    if (rows[key] === undefined) return undefined;
    if (!router[key]) throw invalid(`${where}.${key} is given; the model's router has none`);
    return coefficients(rows[key], `${where}.${key}`, experts.length, "slot");
  };
  const bias = perSlot("bias");
  const correction = perSlot("correction");
  return { weight: text, ...(bias && { bias }), ...(correction && { correction }) };
}

export function parseDown(value: unknown, where: string, slots: number, { experts }: MoeSpec): string {
  const text = packed(value, where);
  // Experts of one layer are equal in shape.
  const [hidden, width] = (experts[0] as MlpSpec).down.shape as [number, number];
  const count = slots * hidden * width;
  const found = countBfloat16(text);
  if (found !== count) {
    const holds =
      found === undefined ? `${text.length} characters, which hold no bfloat16 values` : `${found} values`;
    throw invalid(`${where} has ${holds}, expected ${count}: ${slots} slots of [${hidden}, ${width}]`);
  }
  unpacked(() => unpackBfloat16(text, { count, what: where }));
  return text;
}

/** @throws COPPICE_PLAN_RECORD where a written folder left values out, COPPICE_PLAN_INVALID */
function packed(value: unknown, where: string): string {
  if (isRecordedValues(value)) throw valuesLeftOut(value, where);
  if (typeof value !== "string") throw invalid(`${where} is ${show(value)}, expected packed values`);
  return value;
}

function unpacked(unpack: () => void): void {
  try {
    unpack();
  } catch (error) {
    throw invalid(error instanceof Error ? error.message : String(error));
  }
}

export function parseSkip(value: unknown, where: string): SkipRule {
  const { rule, threshold, spare } = record(value, where, ["rule", "threshold", "spare"]);
  if (rule !== "ratio" && rule !== "top-p") {
    throw invalid(`${where}.rule is ${show(rule)}, expected "ratio" or "top-p"`);
  }
  return {
    rule,
    threshold: share(threshold, `${where}.threshold`),
    ...(spare !== undefined && { spare: share(spare, `${where}.spare`) }),
  };
}

function share(value: unknown, where: string): number {
  if (typeof value !== "number" || !(value >= 0 && value <= 1)) {
    throw invalid(`${where} is ${show(value)}, expected a number from 0 to 1`);
  }
  return value;
}

import { CoppiceError, type TensorRef } from "@coppice/core";
import type { ExpertRows, ExpertTensors, SeparateTensor, StackedTensor } from "./expert-tensors.js";
import type { ExpertLayout, SeparateLayout, StackedLayout } from "./family.js";
import type { NameIndex } from "./name-index.js";
import { checkSiblings, isPacked, missingSibling, type Quantization, withScales } from "./quantization.js";
import { stackedUnitPlaces, stackOrder, unitPlaces } from "./unit-places.js";

/** One set of experts in the files. */
export interface ExpertPlace {
  /** Index of the decoder layer whose plan applies. */
  readonly layer: number;
  /** How messages call it. */
  readonly label: string;
  readonly isMtp?: true;
  /** The checkpoint's name for a pattern of the family, in this place; `{e}` stays when no expert is given. */
  readonly name: (pattern: string) => string;
}

/** The layouts of a family whose experts are there. */
export function layoutsAt(
  layouts: readonly ExpertLayout[],
  name: ExpertPlace["name"],
  index: NameIndex,
): ExpertLayout[] {
  return layouts.filter((layout) =>
    layout.kind === "separate"
      ? hasNumbered(index, containerOf(layout, name))
      : stackNames(layout).some((stack) => index.any(stem(name(stack)))),
  );
}

/**
 * Lists what surgery edits of one set of experts, by name, and checks that it is complete.
 * @param count number of experts that the config states
 * @throws COPPICE_FORMAT_EXPERTS, COPPICE_FORMAT_QUANTIZED, COPPICE_FORMAT_MISSING_TENSOR, COPPICE_FORMAT_DTYPE
 */
export function findEdits(
  layout: ExpertLayout,
  { layer, label, name, isMtp }: ExpertPlace,
  count: number,
  index: NameIndex,
  quantization: Quantization,
): ExpertTensors {
  const rows = findRows(layout, name, index);
  const [weight] = rows as [ExpertRows, ...ExpertRows[]];
  const separate =
    layout.kind === "separate" ? separateTensors(layout, name, label, index, quantization) : [];
  const stacked = layout.kind === "fused" ? stackedTensors(layout, name, label, count, index) : [];
  const found = layout.kind === "separate" ? new Set(separate.map(({ expert }) => expert)).size : count;
  for (const { tensor, axis } of rows) {
    const size = tensor.shape[axis];
    if (size === count && found === count) continue;
    throw contradiction(
      `${label} has ${found} experts, ${tensor.name} has ${size} of them, config.json says ${count}`,
      { label, experts: found, router: weight.tensor.shape[0] ?? null, config: count },
    );
  }
  return { layer, label, ...(isMtp && { isMtp }), experts: count, rows, separate, stacked };
}

function findRows(layout: ExpertLayout, name: ExpertPlace["name"], index: NameIndex): ExpertRows[] {
  const router = name(layout.router);
  const weight = index.get(router);
  if (!weight) {
    throw new CoppiceError(
      "COPPICE_FORMAT_MISSING_TENSOR",
      `tensor ${router} is missing, the router of experts that are there`,
      {
        details: { tensor: router },
      },
    );
  }
  const rows: ExpertRows[] = [{ tensor: weight, axis: 0, role: "weight" }];
  for (const role of ["bias", "correction"] as const) {
    const pattern = role === "bias" ? layout.routerBias : layout.correction;
    const tensor = pattern === undefined ? undefined : index.get(name(pattern));
    if (tensor) rows.push({ tensor, axis: tensor.shape.length - 1, role });
  }
  // Scales or a bias of the router that stayed as they are would no longer fit its rows.
  const known = new Set(rows.map(({ tensor }) => tensor.name));
  const other = index.under(`${stem(router)}.`).find((one) => !known.has(one));
  if (other) throw unknownSibling(other);
  return rows;
}

function separateTensors(
  layout: SeparateLayout,
  name: ExpertPlace["name"],
  label: string,
  index: NameIndex,
  quantization: Quantization,
): SeparateTensor[] {
  const container = containerOf(layout, name);
  const experts = new Map<number, Map<string, TensorRef>>();
  for (const full of index.under(container)) {
    const match = /^(\d+)\.(.+)$/.exec(full.slice(container.length));
    if (!match) continue;
    const expert = Number(match[1]);
    const own = experts.get(expert) ?? new Map<string, TensorRef>();
    own.set(match[2] as string, index.get(full) as TensorRef);
    experts.set(expert, own);
  }
  const numbers = [...experts.keys()].sort((a, b) => a - b);
  if (numbers.length === 0) {
    throw new CoppiceError(
      "COPPICE_FORMAT_MISSING_TENSOR",
      `the experts of ${label} are missing, tensors ${container}*`,
      {
        details: { tensor: container },
      },
    );
  }
  const gap = numbers.findIndex((number, i) => number !== i);
  if (gap >= 0) {
    throw contradiction(`${label} has expert ${numbers.at(-1)} and lacks expert ${gap}`, {
      label,
      missing: gap,
    });
  }
  const first = experts.get(0) as ReadonlyMap<string, TensorRef>;
  const roles = rolesOf(layout);
  checkRoles(container, first, roles);
  const tensors: SeparateTensor[] = [];
  for (const expert of numbers) {
    const own = experts.get(expert) as ReadonlyMap<string, TensorRef>;
    checkAlike(container, label, expert, own, first);
    for (const [end, tensor] of own) {
      const units = unitPlaces(layout, end);
      tensors.push({
        expert,
        pattern: `${container}{e}.${end}`,
        ...mergeOf(end, tensor, own, quantization),
        ...(units && { units }),
      });
    }
  }
  return tensors;
}

/** Every tensor of an expert must belong to one of its matrices, and come with what it needs. */
function checkRoles(
  container: string,
  tensors: ReadonlyMap<string, TensorRef>,
  roles: readonly string[],
): void {
  const ends = new Map(roles.map((role) => [role, new Set<string>()]));
  for (const end of tensors.keys()) {
    const role = roles.find((one) => end.startsWith(`${one}.`));
    if (role === undefined) throw unknownSibling(`${container}0.${end}`);
    ends.get(role)?.add(end.slice(role.length + 1));
  }
  for (const [role, found] of ends) checkSiblings(`${container}0.${role}`, found);
}

function checkAlike(
  container: string,
  label: string,
  expert: number,
  own: ReadonlyMap<string, TensorRef>,
  first: ReadonlyMap<string, TensorRef>,
): void {
  for (const end of new Set([...first.keys(), ...own.keys()])) {
    const [one, other] = [first.get(end), own.get(end)];
    if (!one || !other) {
      const [lacking, having] = one ? [expert, 0] : [0, expert];
      const missing = `${container}${lacking}.${end}`;
      if (!/\.(weight|bias)$/.test(end))
        throw missingSibling(`${container}${lacking}.${end.replace(/\.[^.]+$/, "")}`, missing);
      throw new CoppiceError(
        "COPPICE_FORMAT_MISSING_TENSOR",
        `tensor ${missing} is missing, which expert ${having} of ${label} has`,
        { details: { tensor: missing } },
      );
    }
    if (one.dtype === other.dtype) continue;
    // Merged experts are stored in the dtype of their layer's experts, so there must be one.
    throw new CoppiceError(
      "COPPICE_FORMAT_DTYPE",
      `the experts of ${label} are stored in different dtypes: ${one.name} in ${one.dtype}, ${other.name} in ${other.dtype}`,
      { details: { tensor: other.name } },
    );
  }
}

function mergeOf(
  end: string,
  tensor: TensorRef,
  own: ReadonlyMap<string, TensorRef>,
  quantization: Quantization,
): Pick<SeparateTensor, "tensor" | "merge" | "partner"> {
  const base = end.slice(0, end.lastIndexOf(".") + 1);
  const weight = own.get(`${base}weight`);
  const scales = own.get(`${base}weight_scale_inv`) ?? own.get(`${base}weight_scale`);
  const isPlainPair = weight && scales && !isPacked(weight) && !own.has(`${base}weight_scale_2`);
  if (isPlainPair && tensor === weight) {
    withScales(weight, scales, quantization);
    return { tensor, merge: "codes", partner: scales };
  }
  if (isPlainPair && tensor === scales) return { tensor, merge: "scales", partner: weight };
  if (/\.(weight|bias)$/.test(end) && !isPacked(tensor) && own.get(`${base}qweight`) === undefined) {
    if (end.endsWith(".weight")) withScales(tensor, undefined, quantization);
    return { tensor, merge: "plain" };
  }
  return { tensor, merge: "opaque" };
}

/** What a tensor of a stack goes with, by the ends of their names: either of these. */
const stackPartners: ReadonlyMap<string, readonly string[]> = new Map([
  ["", ["_scale_inv", "_scale"]],
  ["_blocks", ["_scales"]],
  ["_scales", ["_blocks"]],
  ["_scale_inv", [""]],
  ["_scale", [""]],
  ["_bias", []],
]);

function stackedTensors(
  layout: StackedLayout,
  name: ExpertPlace["name"],
  label: string,
  count: number,
  index: NameIndex,
): StackedTensor[] {
  const stacked: StackedTensor[] = [];
  const stored = (pattern: string) => {
    const plain = index.get(name(pattern));
    return { shape: plain?.shape ?? [], isFp4: !plain && index.has(`${name(pattern)}_blocks`) };
  };
  const order = stackOrder(layout, stored((layout.gateUp ?? layout.up) as string), stored(layout.down));
  for (const pattern of stackNames(layout)) {
    const base = name(pattern);
    const has = (end: string) => index.get(base + end);
    if (index.has(base) && index.has(`${base}_blocks`)) {
      throw contradiction(`${label} has its experts twice, in ${base} and in ${base}_blocks`, {
        label,
        tensor: base,
      });
    }
    for (const full of index.under(stem(base))) {
      const tensor = index.get(full) as TensorRef;
      const end = full.startsWith(base) ? full.slice(base.length) : undefined;
      if (end === undefined || !stackPartners.has(end)) {
        // Another tensor whose name merely begins alike.
        if (/^[A-Za-z0-9]/.test(full.slice(stem(base).length))) continue;
        throw unknownSibling(full);
      }
      const rowsPerExpert = (tensor.shape[0] ?? 0) / (layout.flat ? count : 1);
      const experts = layout.flat ? count : tensor.shape[0];
      if (experts !== count || !Number.isInteger(rowsPerExpert)) {
        throw contradiction(
          `${tensor.name} of ${label} has shape [${tensor.shape.join(", ")}], config.json says ${count} experts`,
          { label, shape: [...tensor.shape], config: count },
        );
      }
      const partner = (stackPartners.get(end) ?? []).map(has).find((found) => found !== undefined);
      if (!partner && end !== "" && end !== "_bias") {
        throw missingSibling(full, base + (stackPartners.get(end) as readonly string[])[0]);
      }
      const isCodes = end === "_blocks" || (end === "" && partner !== undefined);
      const isOpaque = end === "" && isPacked({ ...tensor, name: `${full}.weight` });
      const merge = isOpaque ? "opaque" : isCodes ? "codes" : partner ? "scales" : "plain";
      const units = stackedUnitPlaces(layout, order, pattern, end === "_bias");
      stacked.push({
        tensor,
        rowsPerExpert: layout.flat ? rowsPerExpert : 1,
        merge,
        ...(partner && { partner }),
        ...(units && { units }),
      });
    }
  }
  return stacked;
}

/** Names of a stack's siblings begin so. */
function stem(name: string): string {
  return name.endsWith(".weight") ? name.slice(0, -".weight".length) : name;
}

export function stackNames({ gateUp, gate, up, down }: StackedLayout): string[] {
  return [gateUp, gate, up, down].filter((name) => name !== undefined);
}

/** What the names of single experts begin with, their number not included. */
export function containerOf({ experts }: SeparateLayout, name: ExpertPlace["name"]): string {
  const pattern = name(experts.up);
  return pattern.slice(0, pattern.indexOf("{e}"));
}

function rolesOf({ experts }: SeparateLayout): string[] {
  return [experts.gate, experts.up, experts.down].flatMap((name) =>
    name === undefined ? [] : [name.slice(name.indexOf("{e}.") + "{e}.".length)],
  );
}

function hasNumbered(index: NameIndex, container: string): boolean {
  return /^\d/.test((index.first(container) ?? "").slice(container.length));
}

export function unknownSibling(tensor: string): CoppiceError {
  return new CoppiceError(
    "COPPICE_FORMAT_QUANTIZED",
    `tensor ${tensor.slice(0, 200)} stands beside experts and is of no known kind`,
    { hint: "give the original checkpoint", details: { tensor } },
  );
}

export function contradiction(message: string, details: Record<string, unknown>): CoppiceError {
  return new CoppiceError("COPPICE_FORMAT_EXPERTS", message, {
    hint: "the files are of different downloads, or were edited without their config",
    details,
  });
}

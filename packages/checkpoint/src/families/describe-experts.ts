import type { ActivationSpec, MlpSpec, MoeSpec, RouterSpec, TensorRef } from "@coppice/core";
import type { Description } from "./describe-attention.js";
import { type ExpertLayout, flag, type MlpNames, type RouterSettings, type StackedLayout } from "./family.js";
import { isReadablePack } from "./packed-weights.js";
import { isPacked } from "./quantization.js";
import { entry, matrixOf, partOf, takeStack, vectorOf } from "./stacked-matrices.js";
import type { TensorTaker } from "./tensor-taker.js";
import { stackOrder } from "./unit-places.js";

const silu: ActivationSpec = { kind: "silu" };

/**
 * Describes routers and experts.
 * @param isWhole false: the checkpoint's weights are packed; experts are described by what is stored, and nothing
 * else is
 */
export function describeExperts(
  description: Description,
  layout: ExpertLayout,
  isWhole: boolean,
): (layer: number) => MoeSpec {
  const { family, config, settings, take } = description;
  const { experts: expertKeys, topK: topKeys, expertWidth, expertInput, defaults } = family.config;
  const input = expertInput && config.get(expertInput) ? config.integer(expertInput) : settings.hiddenSize;
  const routing = family.router.settings(config);
  const activation = family.activation ?? silu;
  return (layer) => {
    const count = config.layerInteger(expertKeys, layer);
    const topK = config.layerInteger(topKeys, layer, defaults.topK);
    const width = config.layerInteger(expertWidth, layer);
    if (topK > count) {
      throw config.invalid(topKeys[0] as string, topK, `at most the number of experts, ${count}`);
    }
    checkGroups(description, routing, count);
    const sizes = { layer, count, width, input, activation };
    const experts =
      !isWhole && layout.kind === "separate"
        ? packedExperts(take, layout.experts, sizes)
        : layout.kind === "separate"
          ? Array.from({ length: count }, (_, expert) =>
              takeMlp(take, layout.experts, width, input, false, activation, layer, expert),
            )
          : stackedExperts(take, layout, sizes);
    return {
      kind: "moe",
      router: takeRouter(description, layout, layer, count, topK, routing),
      experts,
      ...(isWhole && describeShared(description, layer)),
    };
  };
}

function takeRouter(
  { family, settings, take }: Description,
  layout: ExpertLayout,
  layer: number,
  count: number,
  topK: number,
  routing: RouterSettings,
): RouterSpec {
  const { router, routerBias, correction } = layout;
  return {
    weight: take.tensor(take.name(router, layer), [count, settings.hiddenSize]),
    ...(routerBias && { bias: take.tensor(take.name(routerBias, layer), [count]) }),
    ...(correction && { correction: takeCorrection(take, take.name(correction, layer), count) }),
    order: family.router.order,
    topK,
    ...routing,
  };
}

/** ERNIE keeps it as one row of a matrix. */
function takeCorrection(take: TensorTaker, name: string, count: number): TensorRef {
  const { length } = take.any(name, [count]).shape;
  return { ...take.tensor(name, length === 2 ? [1, count] : [count]), shape: [count] };
}

/** Published models have at most 8. Choosing experts tries all sets of groups that a token may use: 12,870 for 16. */
const groupLimit = 16;

/** @throws COPPICE_FORMAT_CONFIG when experts do not divide into groups that the router can choose from */
function checkGroups({ config, family }: Description, { groups }: RouterSettings, experts: number): void {
  if (!groups) return;
  const key = config.get(family.config.groups ?? [])?.key ?? "n_group";
  if (groups.count > groupLimit) throw config.invalid(key, groups.count, `at most ${groupLimit} groups`);
  const size = experts / groups.count;
  const least = groups.score === "top2" ? 2 : 1;
  if (Number.isInteger(size) && size >= least) return;
  throw config.invalid(
    key,
    groups.count,
    `a number that divides the ${experts} experts into groups of at least ${least}`,
  );
}

function describeShared(
  { family, config, settings, take }: Description,
  layer: number,
): Pick<MoeSpec, "shared" | "sharedGate"> {
  const { shared } = family;
  const width = shared?.width(config, layer) ?? 0;
  if (!shared || width === 0) return {};
  const { hiddenSize } = settings;
  const activation = family.activation ?? silu;
  const mlp = takeMlp(take, shared.names, width, hiddenSize, flag(config, shared.bias), activation, layer);
  if (!shared.gate) return { shared: mlp };
  return { shared: mlp, sharedGate: take.weight(take.name(shared.gate, layer), [1, hiddenSize]) };
}

export function takeMlp(
  take: TensorTaker,
  names: MlpNames,
  width: number,
  input: number,
  hasBias: boolean,
  activation: ActivationSpec,
  layer: number,
  expert?: number,
): MlpSpec {
  const base = (pattern: string) => take.name(pattern, layer, expert);
  const bias = (pattern: string, size: number) => take.tensor(`${base(pattern)}.bias`, [size]);
  const { gate, up, down } = names;
  return {
    ...(gate !== undefined && { gate: take.weight(base(gate), [width, input]) }),
    up: take.weight(base(up), [width, input]),
    down: take.weight(base(down), [input, width]),
    ...(hasBias && gate !== undefined && { gateBias: bias(gate, width) }),
    ...(hasBias && { upBias: bias(up, width), downBias: bias(down, input) }),
    width,
    activation,
  };
}

interface ExpertSizes {
  readonly layer: number;
  readonly count: number;
  readonly width: number;
  readonly input: number;
  readonly activation: ActivationSpec;
}

/** Experts by what is stored of them: packs of integers, or weights that happen not to be packed. */
function packedExperts(
  take: TensorTaker,
  names: MlpNames,
  { layer, count, width, activation }: ExpertSizes,
): MlpSpec[] {
  return Array.from({ length: count }, (_, expert) => {
    const stored = (pattern: string) => {
      const base = take.name(pattern, layer, expert);
      const found = take.optional(`${base}.qweight`, `${base}.weight_packed`, `${base}.weight`);
      return found ?? take.any(`${base}.weight`, []);
    };
    return {
      ...(names.gate !== undefined && { gate: stored(names.gate) }),
      up: stored(names.up),
      down: stored(names.down),
      width,
      activation,
    };
  });
}

function stackedExperts(take: TensorTaker, layout: StackedLayout, sizes: ExpertSizes): MlpSpec[] {
  const { layer, count, width, input, activation } = sizes;
  const stack = (pattern: string, shape: readonly number[]) =>
    takeStack(take, take.name(pattern, layer), shape);
  const isFlat = layout.flat === true;
  const down = stack(layout.down, [count, input, width]);
  const outputs = layout.gateUp === undefined ? width : 2 * width;
  const first = stack((layout.gateUp ?? layout.up) as string, [count, outputs, input]);
  const gate = layout.gate === undefined ? undefined : stack(layout.gate, [count, width, input]);
  const { rows: isRows, downRows } = stackOrder(
    layout,
    { shape: first.tensor.shape, isFp4: first.isFp4 },
    { shape: down.tensor.shape, isFp4: down.isFp4 },
  );
  const isInterleaved = layout.order === "interleaved";
  const bias = (pattern: string) => (layout.biases ? take.name(`${pattern}_bias`, layer) : undefined);
  const stored = (rows: number, columns: number, asRows: boolean): [number, number] =>
    asRows ? [rows, columns] : [columns, rows];
  return Array.from({ length: count }, (_, expert) => {
    const matrix = (from: typeof first, rows: number, columns: number, asRows: boolean) =>
      matrixOf(take, from, stored(rows, columns, asRows), expert, count, isFlat);
    const both = matrix(first, outputs, input, isRows);
    const own = matrix(down, input, width, downRows);
    /** `every`-th output of a stored matrix, from `start` on, as [outputs, inputs]. */
    const pick = (from: TensorRef, label: string, total: number, start: number, every: number) =>
      isRows
        ? partOf(from, label, [width, input], start * input, [every * input, 1])
        : partOf(from, label, [width, input], start, [every, total]);
    const every = isInterleaved ? 2 : 1;
    const upStart = layout.gateUp === undefined ? 0 : isInterleaved ? 1 : width;
    return {
      ...(layout.gateUp !== undefined && { gate: pick(both, "gate", outputs, 0, every) }),
      ...(gate && { gate: pick(matrix(gate, width, input, isRows), "gate", width, 0, 1) }),
      up: pick(both, "up", outputs, upStart, every),
      down: downRows ? own : partOf(own, "down", [input, width], 0, [1, input]),
      ...stackedBiases(take, bias(layout.gateUp ?? ""), bias(layout.down), expert, sizes, isInterleaved),
      width,
      activation,
    };
  });
}

function stackedBiases(
  take: TensorTaker,
  gateUp: string | undefined,
  down: string | undefined,
  expert: number,
  { count, width, input }: ExpertSizes,
  isInterleaved: boolean,
): Pick<MlpSpec, "gateBias" | "upBias" | "downBias"> {
  if (gateUp === undefined || down === undefined) return {};
  const one = (name: string, size: number) => entry(take.tensor(name, [count, size]), expert, count, [size]);
  const both = one(gateUp, 2 * width);
  return {
    gateBias: vectorOf(both, "gate", width, 0, isInterleaved ? 2 : 1),
    upBias: isInterleaved ? vectorOf(both, "up", width, 1, 2) : vectorOf(both, "up", width, width, 1),
    downBias: one(down, input),
  };
}

/**
 * A weight of the language model that can only be moved, if there is one. An integer weight alone is none: it needs
 * the siblings of a pack.
 */
export function findPacked({ index, quantization }: TensorTaker, prefix: string): TensorRef | undefined {
  for (const name of index.under(prefix)) {
    const ref = index.get(name) as TensorRef;
    if (!isPacked(ref) || (quantization.readable && isReadablePack(ref, index))) continue;
    const siblings = [`${name}_scale`, `${name}.absmax`, name.replace(/weight$/, "SCB")];
    if (!name.endsWith(".weight") || siblings.some((sibling) => index.has(sibling))) return ref;
  }
  return undefined;
}

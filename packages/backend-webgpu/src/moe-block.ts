import { type LayerPlan, type MoeSpec, skipRuleOf } from "@coppice/core";
import {
  addGated,
  addScaled,
  type Choices,
  checkedTopK,
  combineChoices,
  expertMatmul,
  fewRows,
  type Gpu,
  type GpuBuffer,
  type PlannedChoices,
  routeChoices,
  type SortedChoices,
  sortChoices,
  sortedBytes,
} from "@coppice/kernels-webgpu";
import type { Experts, Mlp, MoeWeights } from "./model-weights.js";
import type { Operators } from "./operators.js";
import type { PlannedExperts } from "./planned-experts.js";
import type { Workspace } from "./workspace.js";

/** Bytes of what the experts of one block of tokens compute; more tokens go through an MoE layer in several blocks. */
export const expertBytes = 256 * 1024 * 1024;

export interface MoeContext {
  readonly gpu: Gpu;
  readonly operators: Operators;
  readonly workspace: Workspace;
  readonly half: boolean;
  readonly hidden: number;
  /** [1] u32, grows by the choices that run. */
  readonly counts: GpuBuffer;
}

export interface MoeCall {
  readonly spec: MoeSpec;
  readonly plan: LayerPlan | undefined;
  readonly weights: MoeWeights;
  readonly planned: PlannedExperts;
  /** [tokens] u32, 1 for those that skip nothing. */
  readonly spared: GpuBuffer | undefined;
}

/** What an MoE layer did with some tokens, in work buffers. */
export interface RoutedRun {
  readonly tokens: number;
  readonly topK: number;
  readonly logits: GpuBuffer;
  readonly slots: GpuBuffer;
  readonly gates: GpuBuffer;
  /** [tokens, topK, hidden], unweighted; rows of choices that do not run hold anything. */
  readonly outputs: GpuBuffer;
}

/**
 * The routed experts of the normed input x [tokens, hidden] into y [tokens, hidden].
 */
export async function runRouted(
  context: MoeContext,
  call: MoeCall,
  x: GpuBuffer,
  tokens: number,
  y: GpuBuffer,
): Promise<RoutedRun> {
  const { gpu, operators, workspace, hidden } = context;
  const { spec, plan, weights, planned, spared } = call;
  const { routerRows, slotCount, places } = planned;
  const topK = checkedTopK(spec.router, slotCount, plan);
  const logits = workspace.take("router logits", tokens * routerRows);
  const bias = planned.routerBias;
  await operators.multiply({ x, rows: tokens, weight: planned.router, bias, y: logits });
  const slots = workspace.take("slots", tokens * topK);
  const gates = workspace.take("gates", tokens * topK);
  const { map, correction, groupOf } = planned;
  const { router } = spec;
  routeChoices(gpu, {
    router,
    plan,
    logits,
    tokens,
    columns: routerRows,
    map,
    correction,
    groupOf,
    spared,
    slots,
    gates,
  });
  const choices: Choices = { tokens, topK, slots, gates, places, slotCount };
  // Skipped choices are counted by sorting.
  const sorted = tokens > fewRows || skipRuleOf(router, plan) !== undefined;
  const scaled = router.scalesInput === true;
  const { outputs } = runExperts(context, weights.experts, planned, choices, x, sorted, scaled);
  combineChoices(gpu, choices, outputs, y, hidden, !scaled);
  return { tokens, topK, logits, slots, gates, outputs };
}

/** Routed experts of tokens of several runs. */
export interface SharedCall {
  readonly spec: MoeSpec;
  /** Experts of the layer as it is stored. */
  readonly whole: PlannedExperts;
  readonly stacks: Pick<PlannedExperts, "units" | "down">;
  readonly planned: PlannedChoices;
  /** [blocks] u32: 0, 1, 2 ... */
  readonly places: GpuBuffer;
  readonly blocks: number;
}

/** As `runRouted`, each token with the experts that its run keeps. Choices of all runs that go to one expert are one product. */
export async function runShared(
  context: MoeContext,
  { spec: { router }, whole, stacks, planned, places, blocks }: SharedCall,
  experts: Experts,
  x: GpuBuffer,
  tokens: number,
  y: GpuBuffer,
): Promise<void> {
  const { gpu, operators, workspace, hidden } = context;
  const { topK } = router;
  const columns = whole.routerRows;
  const logits = workspace.take("router logits", tokens * columns);
  await operators.multiply({ x, rows: tokens, weight: whole.router, bias: whole.routerBias, y: logits });
  const slots = workspace.take("slots", tokens * topK);
  const gates = workspace.take("gates", tokens * topK);
  const { correction } = whole;
  routeChoices(gpu, { router, logits, tokens, columns, correction, planned, slots, gates });
  const choices: Choices = { tokens, topK, slots, gates, places, slotCount: blocks };
  const scaled = router.scalesInput === true;
  // In float16, products of small tiles are others, and the tile would follow the number of runs.
  const tile = context.half ? 64 : undefined;
  const { outputs } = runExperts(context, experts, stacks, choices, x, true, scaled, tile);
  combineChoices(gpu, choices, outputs, y, hidden, !scaled);
}

/** The experts of all choices: hidden units [choices, width] and outputs [choices, hidden]. */
export function runExperts(
  { gpu, workspace, half, hidden, counts }: MoeContext,
  { width, activation }: Experts,
  planned: Pick<PlannedExperts, "units" | "down">,
  choices: Choices,
  x: GpuBuffer,
  sort: boolean,
  scaled: boolean,
  tile?: SortedChoices["tile"],
): { units: GpuBuffer; outputs: GpuBuffer } {
  const count = choices.tokens * choices.topK;
  const bytes = sortedBytes(count, choices.slotCount, tile);
  const sorted = sort
    ? sortChoices(
        gpu,
        choices,
        {
          order: workspace.take("order", bytes.order / 4),
          tiles: workspace.take("expert tiles", bytes.tiles / 4),
        },
        counts,
        tile,
      )
    : undefined;
  const units = workspace.take("units", count * width);
  const outputs = workspace.take("expert outputs", count * hidden);
  const shared = { choices: { ...choices, sorted }, half };
  expertMatmul(gpu, { ...shared, x, perChoice: false, stacks: planned.units, activation, scaled, y: units });
  expertMatmul(gpu, { ...shared, x: units, perChoice: true, stacks: planned.down, y: outputs });
  return { units, outputs };
}

/** An MLP that every token goes through, into y [tokens, hidden]. */
export async function runMlp(
  { operators, workspace, half }: MoeContext,
  mlp: Mlp,
  x: GpuBuffer,
  tokens: number,
  y: GpuBuffer,
): Promise<void> {
  const { width, activation, units: weight, unitsBias: bias, down } = mlp;
  const units = workspace.take("units", tokens * width);
  await operators.multiply({ x, rows: tokens, weight, bias, activation, y: units, half });
  await operators.multiply({ x: units, rows: tokens, weight: down.weight, bias: down.bias, y, half });
}

/** Adds the shared expert, times the sigmoid of its own gate where there is one. */
export async function addShared(
  context: MoeContext,
  { shared, sharedGate }: MoeWeights,
  x: GpuBuffer,
  tokens: number,
  y: GpuBuffer,
): Promise<void> {
  if (!shared) return;
  const { gpu, operators, workspace, hidden } = context;
  const output = workspace.take("shared output", tokens * hidden);
  await runMlp(context, shared, x, tokens, output);
  if (!sharedGate) {
    addScaled(gpu, output, y, tokens * hidden, 1);
    return;
  }
  const shares = workspace.take("shares", tokens);
  await operators.multiply({ x, rows: tokens, weight: sharedGate, y: shares });
  addGated(gpu, output, shares, y, tokens, hidden);
}

import {
  type LayerPlan,
  type MoeSpec,
  type Routing,
  routeTokens,
  skipped,
  type Tap,
  type TapField,
} from "@coppice/core";
import { dot, linear } from "./linear.js";
import { runMlp } from "./mlp.js";
import type { PlannedExperts } from "./plan-weights.js";
import type { Scratch } from "./scratch.js";
import { showLayer } from "./show-layer.js";
import type { Mlp } from "./weights.js";

export interface MoeCall {
  readonly layer: number;
  readonly spec: MoeSpec;
  readonly plan: LayerPlan | undefined;
  readonly experts: PlannedExperts;
  readonly shared: Mlp | undefined;
  /** [1, hidden] */
  readonly sharedGate: Float32Array | undefined;
  /** The residual stream before the block, [tokens, hidden]; shown to the tap. */
  readonly residual: Float32Array;
  readonly tap: Tap | undefined;
  /** [tokens], 1 for those that skip nothing. */
  readonly spared: Uint8Array | undefined;
}

/**
 * The MoE block: x is its input after the norm, y receives the gate-weighted sum of the routed experts and the shared
 * expert, both [tokens, hidden]. Tokens are gathered expert by expert; sums over a token's experts are float64.
 * @returns the choices that ran
 */
export function runMoe(
  call: MoeCall,
  x: Float32Array,
  tokens: number,
  y: Float32Array,
  scratch: Scratch,
): number {
  const expertTokens = runRouted(call, x, tokens, y, scratch);
  if (call.shared) addShared(call.shared, call.sharedGate, x, tokens, y, scratch);
  return expertTokens;
}

function runRouted(
  call: MoeCall,
  x: Float32Array,
  tokens: number,
  y: Float32Array,
  scratch: Scratch,
): number {
  const { spec, plan, experts, tap, spared } = call;
  const hidden = x.length / tokens;
  const { slots, router, routerRows } = experts;
  const logits = scratch.take("routerLogits", tokens * routerRows);
  linear(x, tokens, router.weight, hidden, routerRows, logits, router.bias);
  const routing = routeTokens(logits, tokens, spec.router, { plan, correction: router.correction, spared });
  const { topK } = routing;
  const { scalesInput = false } = spec.router;

  const wanted = new Set(tap?.fields);
  // Choices that are skipped stay 0.
  const shown = (field: TapField, size: number) =>
    wanted.has(field) ? scratch.take(field, tokens * topK * size).fill(0) : undefined;
  const outputs = shown("expertOutputs", hidden);
  const norms = shown("expertNorms", 1);
  const peaks = shown("expertPeaks", 1);
  const sums = new Float64Array(tokens * hidden);
  const { choices, starts } = choicesBySlot(routing, slots.length);
  slots.forEach((expert, slot) => {
    const start = starts[slot] as number;
    const rows = (starts[slot + 1] as number) - start;
    if (rows === 0) return;
    const input = scratch.take("expertInput", rows * hidden);
    const output = scratch.take("expertOutput", rows * hidden);
    for (let row = 0; row < rows; row++) {
      const choice = choices[start + row] as number;
      const from = Math.floor(choice / topK) * hidden;
      const factor = scalesInput ? (routing.gates[choice] as number) : 1;
      for (let i = 0; i < hidden; i++) input[row * hidden + i] = factor * (x[from + i] as number);
    }
    runMlp(expert, input, rows, hidden, output, scratch);
    for (let row = 0; row < rows; row++) {
      const choice = choices[start + row] as number;
      const gate = scalesInput ? 1 : (routing.gates[choice] as number);
      const to = Math.floor(choice / topK) * hidden;
      const from = row * hidden;
      for (let i = 0; i < hidden; i++)
        sums[to + i] = (sums[to + i] as number) + gate * (output[from + i] as number);
      if (norms) norms[choice] = rowNorm(output, from, hidden);
      if (peaks) peaks[choice] = rowPeak(output, from, hidden);
      outputs?.set(output.subarray(from, from + hidden), choice * hidden);
    }
  });
  y.set(sums);

  if (tap)
    showLayer(tap, call, { tokens, input: x, logits, routing, outputs, norms, peaks, output: y }, scratch);
  return choices.length;
}

/** Adds the shared expert, times the sigmoid of its own gate where there is one. */
function addShared(
  shared: Mlp,
  sharedGate: Float32Array | undefined,
  x: Float32Array,
  tokens: number,
  y: Float32Array,
  scratch: Scratch,
): void {
  const hidden = x.length / tokens;
  const output = scratch.take("sharedOutput", tokens * hidden);
  runMlp(shared, x, tokens, hidden, output, scratch);
  for (let token = 0; token < tokens; token++) {
    const at = token * hidden;
    const share = sharedGate ? 1 / (1 + Math.exp(-dot(x, at, sharedGate, 0, hidden))) : 1;
    for (let i = at; i < at + hidden; i++) y[i] = (y[i] as number) + share * (output[i] as number);
  }
}

/**
 * Counting sort: entries `starts[slot]` to `starts[slot + 1]` of `choices` are the (token * k + i) that chose the slot.
 * Skipped choices are in none.
 */
function choicesBySlot({ slots }: Routing, slotCount: number): { choices: Int32Array; starts: Int32Array } {
  const starts = new Int32Array(slotCount + 1);
  for (const slot of slots) if (slot !== skipped) starts[slot + 1] = (starts[slot + 1] as number) + 1;
  for (let slot = 0; slot < slotCount; slot++) {
    starts[slot + 1] = (starts[slot + 1] as number) + (starts[slot] as number);
  }
  const next = starts.slice();
  const choices = new Int32Array(starts[slotCount] as number);
  for (let choice = 0; choice < slots.length; choice++) {
    const slot = slots[choice] as number;
    if (slot === skipped) continue;
    const at = next[slot] as number;
    choices[at] = choice;
    next[slot] = at + 1;
  }
  return { choices, starts };
}

function rowNorm(values: Float32Array, at: number, length: number): number {
  let squares = 0;
  for (let i = 0; i < length; i++) squares += (values[at + i] as number) ** 2;
  return Math.sqrt(squares);
}

function rowPeak(values: Float32Array, at: number, length: number): number {
  let most = 0;
  for (let i = 0; i < length; i++) most = Math.max(most, Math.abs(values[at + i] as number));
  return most;
}

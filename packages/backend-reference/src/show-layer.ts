import type { LayerTap, Routing, Tap } from "@coppice/core";
import { type EveryField, runEvery } from "./every-expert.js";
import type { MoeCall } from "./moe.js";
import type { Scratch } from "./scratch.js";

/** Values held at once to show what all experts compute: 64 MiB of float32, and never less than one token's. */
const mostEveryValues = 16 * 1024 * 1024;

/** What an MoE layer did with a batch of T tokens; arrays as in `LayerTap`, undefined when not wanted. */
export interface LayerRun {
  readonly tokens: number;
  readonly input: Float32Array;
  /** [T, router rows] */
  readonly logits: Float32Array;
  readonly routing: Routing;
  readonly outputs: Float32Array | undefined;
  readonly norms: Float32Array | undefined;
  readonly peaks: Float32Array | undefined;
  readonly output: Float32Array;
}

/** Shows a layer to the tap: all tokens at once, or in pieces when what all experts compute would take much memory. */
export function showLayer(
  tap: Tap,
  call: MoeCall,
  run: LayerRun,
  scratch: Scratch,
  mostValues = mostEveryValues,
): void {
  const { slots } = call.experts;
  const wanted = new Set(tap.fields);
  const { tokens } = run;
  const hidden = run.input.length / tokens;
  const every = (["everyOutput", "everyUnit"] as const).filter((field) => wanted.has(field));
  const sizes: Record<EveryField, number> = { everyOutput: hidden, everyUnit: slots[0]?.width ?? 0 };
  const perToken = slots.length * every.reduce((sum, field) => sum + sizes[field], 0);
  const asked = new Uint8Array(tokens).fill(every.length > 0 && !tap.every ? 1 : 0);
  if (every.length > 0 && tap.every) asked.set(tap.every);
  for (const [from, to] of stretches(asked, Math.max(1, Math.floor(mostValues / perToken)))) {
    const shown: { -readonly [K in keyof LayerTap]: LayerTap[K] } = {
      layer: call.layer,
      tokens: to - from,
      topK: run.routing.topK,
      rows: Int32Array.from({ length: to - from }, (_, i) => from + i),
    };
    const part = <T extends Float32Array | Int32Array>(values: T): T =>
      values.subarray((from * values.length) / tokens, (to * values.length) / tokens) as T;
    if (wanted.has("residual")) shown.residual = part(call.residual);
    if (wanted.has("input")) shown.input = part(run.input);
    if (wanted.has("routerLogits")) shown.routerLogits = part(run.logits);
    if (wanted.has("routing")) {
      shown.slots = part(run.routing.slots);
      shown.gates = part(run.routing.gates);
    }
    if (run.outputs) shown.expertOutputs = part(run.outputs);
    if (run.norms) shown.expertNorms = part(run.norms);
    if (run.peaks) shown.expertPeaks = part(run.peaks);
    if (wanted.has("output")) shown.output = part(run.output);
    if (every.length > 0) {
      const rows = shown.rows.filter((row) => asked[row]);
      Object.assign(shown, runEvery(call, run, rows, hidden, every, scratch));
      shown.everyRows = rows.map((row) => row - from);
    }
    tap.onLayer(shown);
  }
}

/** Stretches [from, to) of tokens with at most `most` of those asked for in each. */
function stretches(asked: Uint8Array, most: number): [number, number][] {
  const cuts = [0];
  let held = 0;
  asked.forEach((mark, token) => {
    if (!mark) return;
    if (held === most) {
      cuts.push(token);
      held = 0;
    }
    held++;
  });
  return cuts.map((from, i) => [from, cuts[i + 1] ?? asked.length]);
}

import { gatesOfAll, type LayerTap, skipped, type Tap } from "@coppice/core";
import { copyRows, type GpuBuffer } from "@coppice/kernels-webgpu";
import { type MoeCall, type MoeContext, type RoutedRun, runExperts } from "./moe-block.js";

/** Values held at once to show what all experts compute, and never less than one token's: 64 MiB of float32. */
const mostEveryValues = 16 * 1024 * 1024;

export interface ShownLayer {
  readonly layer: number;
  /** First packed row of the tokens. */
  readonly from: number;
  /** The residual stream before the block, its normed input and what the routed experts add, [tokens, hidden]. */
  readonly residual: GpuBuffer;
  readonly input: GpuBuffer;
  readonly output: GpuBuffer;
}

/** Shows what a layer did to the tap: reads back what it asks for, and runs what no token chose where that is wanted. */
export async function showLayer(
  context: MoeContext,
  call: MoeCall,
  { layer, from, residual, input, output }: ShownLayer,
  run: RoutedRun,
  tap: Tap,
): Promise<void> {
  const { gpu, hidden } = context;
  const { tokens, topK } = run;
  const wanted = new Set(tap.fields);
  const shown: { -readonly [K in keyof LayerTap]: LayerTap[K] } = {
    layer,
    tokens,
    topK,
    rows: Int32Array.from({ length: tokens }, (_, i) => from + i),
  };
  const floats = (buffer: GpuBuffer, perToken: number) => gpu.readFloats(buffer, tokens * perToken);
  if (wanted.has("residual")) shown.residual = await floats(residual, hidden);
  if (wanted.has("input")) shown.input = await floats(input, hidden);
  const every = wanted.has("everyOutput") || wanted.has("everyUnit");
  const scaledEvery = every && call.spec.router.scalesInput === true;
  const logits =
    wanted.has("routerLogits") || scaledEvery ? await floats(run.logits, call.planned.routerRows) : undefined;
  if (logits && wanted.has("routerLogits")) shown.routerLogits = logits;
  const slots = new Int32Array((await floats(run.slots, topK)).buffer);
  if (wanted.has("routing")) {
    shown.slots = slots;
    shown.gates = await floats(run.gates, topK);
  }
  if (wanted.has("expertOutputs") || wanted.has("expertNorms") || wanted.has("expertPeaks")) {
    const outputs = await floats(run.outputs, topK * hidden);
    slots.forEach((slot, choice) => {
      if (slot === skipped) outputs.fill(0, choice * hidden, (choice + 1) * hidden);
    });
    const rows = Array.from(slots, (_, choice) => outputs.subarray(choice * hidden, (choice + 1) * hidden));
    if (wanted.has("expertOutputs")) shown.expertOutputs = outputs;
    if (wanted.has("expertNorms")) shown.expertNorms = Float32Array.from(rows, norm);
    if (wanted.has("expertPeaks")) shown.expertPeaks = Float32Array.from(rows, peak);
  }
  if (wanted.has("output")) shown.output = await floats(output, hidden);
  if (!every) {
    tap.onLayer(shown);
    return;
  }
  const asked = shown.rows.map((_, i) => i).filter((i) => tap.every?.[from + i] ?? 1);
  const perToken = call.planned.slotCount * Math.max(hidden, call.weights.experts.width);
  const most = Math.max(1, Math.floor(mostEveryValues / perToken));
  if (asked.length <= most) {
    Object.assign(
      shown,
      await runEvery(context, call, input, scaledEvery ? logits : undefined, asked, wanted),
    );
    shown.everyRows = asked;
    tap.onLayer(shown);
    return;
  }
  // Too much to hold at once: the tokens in several pieces.
  for (let at = 0, first = 0; at < asked.length; at += most) {
    const piece = asked.subarray(at, at + most);
    const end = at + most < asked.length ? (asked[at + most] as number) : tokens;
    const part: { -readonly [K in keyof LayerTap]: LayerTap[K] } = {
      layer,
      tokens: end - first,
      topK,
      rows: shown.rows,
    };
    for (const [field, values] of Object.entries(shown)) {
      if (typeof values !== "object") continue;
      const size = values.length / tokens;
      Object.assign(part, { [field]: values.subarray(first * size, end * size) });
    }
    Object.assign(
      part,
      await runEvery(context, call, input, scaledEvery ? logits : undefined, piece, wanted),
    );
    part.everyRows = piece.map((row) => row - first);
    tap.onLayer(part);
    first = end;
  }
}

/** What all slots compute from some tokens, whether these chose them or not. */
async function runEvery(
  context: MoeContext,
  { spec, plan, weights, planned }: MoeCall,
  input: GpuBuffer,
  logits: Float32Array | undefined,
  rows: Int32Array,
  wanted: ReadonlySet<string>,
): Promise<Pick<LayerTap, "everyOutput" | "everyUnit">> {
  const { gpu, workspace, hidden } = context;
  const { slotCount, places, correctionValues, routerRows } = planned;
  const count = rows.length * slotCount;
  const { width } = weights.experts;
  const out: { -readonly [K in "everyOutput" | "everyUnit"]?: Float32Array } = {};
  if (count === 0) {
    if (wanted.has("everyOutput")) out.everyOutput = new Float32Array(0);
    if (wanted.has("everyUnit")) out.everyUnit = new Float32Array(0);
    return out;
  }
  const x = workspace.take("every input", rows.length * hidden);
  copyRows(gpu, {
    x: input,
    y: x,
    rows: rows.length,
    size: hidden,
    index: workspace.put("every rows", rows),
    kind: "gather",
  });
  const gates = new Float32Array(count).fill(1);
  if (logits) {
    rows.forEach((row, i) => {
      const own = logits.subarray(row * routerRows, (row + 1) * routerRows);
      gates.set(gatesOfAll(own, 1, spec.router, { plan, correction: correctionValues }), i * slotCount);
    });
  }
  const choices = {
    tokens: rows.length,
    topK: slotCount,
    slots: workspace.put(
      "every slots",
      Int32Array.from({ length: count }, (_, i) => i % slotCount),
    ),
    gates: workspace.put("every gates", gates),
    places,
    slotCount,
  };
  const scaled = spec.router.scalesInput === true;
  const uncounted = { ...context, counts: workspace.take("uncounted", 1) };
  const { units, outputs } = runExperts(uncounted, weights.experts, planned, choices, x, true, scaled);
  if (wanted.has("everyOutput")) out.everyOutput = await gpu.readFloats(outputs, count * hidden);
  if (wanted.has("everyUnit")) out.everyUnit = await gpu.readFloats(units, count * width);
  return out;
}

function norm(values: Float32Array): number {
  return Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
}

function peak(values: Float32Array): number {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

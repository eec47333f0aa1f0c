import type { Backend, DecoderLayer, InputSums, LayerTap, MoeModel, Runner } from "@coppice/core";
import { CoppiceError, throwIfAborted } from "@coppice/core";
import type { EditedWeights } from "./edited-weights.js";
import type { Batch, HiddenStates } from "./hidden-states.js";
import { SumBuilder } from "./input-sums.js";
import { attendedProbes, attendedSize, layerModel, layerPlace } from "./layer-model.js";
import { readNorm } from "./normalize.js";

/** What the passes over a layer share. */
export interface LayerRun {
  readonly model: MoeModel;
  readonly layer: DecoderLayer;
  readonly weights: EditedWeights;
  readonly backend: Backend;
  readonly batches: readonly Batch[];
  readonly states: HiddenStates;
  readonly signal?: AbortSignal;
}

/** Sums over what the experts of a layer read. */
export interface ExpertSums {
  /** What gate and up read, of the tokens that chose the expert. */
  readonly inputs: InputSums;
  /** What down reads. */
  readonly units: InputSums;
}

/** The layer alone, with its weights as they are at the moment. */
export function loadLayer({ model, layer, weights, backend, signal }: LayerRun): Promise<Runner> {
  return backend.load({
    model: layerModel(model, layer),
    weights,
    layers: layerPlace,
    ...(signal && { signal }),
  });
}

/** Runs every batch through the layer. @returns nothing: `visit` sees input and output of each */
async function runBatches(
  { batches, states, signal, layer }: LayerRun,
  runner: Runner,
  visit: (batch: Batch, hidden: Float32Array, output: Float32Array) => void | Promise<void>,
  tap?: (shown: LayerTap) => void,
): Promise<void> {
  for (const batch of batches) {
    throwIfAborted(signal, `running layer ${layer.index}`);
    const hidden = await states.read(batch);
    const { boundaries } = await runner.run({
      sequences: batch.sequences,
      ...layerPlace,
      hidden,
      boundaries: [layerPlace.to],
      ...(tap && { tap: { fields: ["input", "routing", "everyUnit"], onLayer: tap } }),
      ...(signal && { signal }),
    });
    await visit(batch, hidden, boundaries.get(layerPlace.to) as Float32Array);
  }
}

/** Sums over what the attention projections read: the normed hidden states. */
export async function attentionSums({
  model,
  layer,
  weights,
  batches,
  states,
}: LayerRun): Promise<InputSums> {
  const norm = await readNorm(layer.attentionNorm, weights);
  const sums = new SumBuilder(model.hiddenSize);
  for (const batch of batches) sums.add(norm(await states.read(batch), model.hiddenSize), batch.tokens);
  return sums.finish();
}

/** Sums over what the output projection of attention reads; undefined for token mixers of other kinds. */
export async function attendedSums(run: LayerRun): Promise<InputSums | undefined> {
  const { model, layer, weights, backend, batches, states, signal } = run;
  if (layer.attention.kind === "other") return undefined;
  const size = attendedSize(layer.attention);
  const probes = attendedProbes(model, layer, weights);
  const runners: Runner[] = [];
  try {
    for (const { model: probed, weights: shown } of probes) {
      runners.push(
        await backend.load({ model: probed, weights: shown, layers: layerPlace, ...(signal && { signal }) }),
      );
    }
    const sums = new SumBuilder(size);
    for (const batch of batches) {
      throwIfAborted(signal, `running the attention of layer ${layer.index}`);
      const hidden = await states.read(batch);
      const attended = new Float32Array(batch.tokens * size);
      for (const [i, runner] of runners.entries()) {
        const { boundaries } = await runner.run({
          sequences: batch.sequences,
          ...layerPlace,
          hidden,
          boundaries: [layerPlace.to],
          ...(signal && { signal }),
        });
        probes[i]?.take(hidden, boundaries.get(layerPlace.to) as Float32Array, attended);
      }
      sums.add(attended, batch.tokens);
    }
    return sums.finish();
  } finally {
    for (const runner of runners) await runner.dispose();
  }
}

export interface MoeSums {
  /** Over all tokens; present when it was asked for. */
  readonly inputs: InputSums | undefined;
  /** Of the experts that were asked for. */
  readonly experts: ReadonlyMap<number, ExpertSums>;
}

/** Sums over what the experts from `from` to `to` (exclusive) read, in one pass over the data. */
export async function moeSums(
  run: LayerRun,
  runner: Runner,
  { from, to }: { readonly from: number; readonly to: number },
  all: boolean,
): Promise<MoeSums> {
  const { layer, model } = run;
  if (layer.feedForward.kind !== "moe") return { inputs: undefined, experts: new Map() };
  const { experts, router } = layer.feedForward;
  const hidden = model.hiddenSize;
  const total = all ? new SumBuilder(hidden) : undefined;
  const builders = Array.from({ length: to - from }, (_, i) => ({
    inputs: new SumBuilder(hidden),
    units: new SumBuilder(experts[from + i]?.width ?? 0),
  }));
  const onLayer = ({ tokens, topK, input, slots, gates, everyUnit, everyRows }: LayerTap) => {
    if (!input || !slots || !gates || !everyUnit || everyRows?.length !== tokens) {
      throw new CoppiceError("COPPICE_BACKEND_FAILED", "the backend's tap lacks inputs or hidden units");
    }
    total?.add(input, tokens);
    const width = everyUnit.length / tokens / experts.length;
    const chosen: number[][] = builders.map(() => []);
    for (const [choice, slot] of slots.entries()) chosen[slot - from]?.push(choice);
    for (const [i, { inputs, units }] of builders.entries()) {
      const choices = chosen[i] as number[];
      const read = new Float32Array(choices.length * hidden);
      const multiplied = new Float32Array(choices.length * width);
      for (const [at, choice] of choices.entries()) {
        const token = Math.floor(choice / topK);
        read.set(input.subarray(token * hidden, (token + 1) * hidden), at * hidden);
        if (router.scalesInput) {
          const gate = gates[choice] as number;
          for (let h = at * hidden; h < (at + 1) * hidden; h++) read[h] = gate * (read[h] as number);
        }
        const first = (token * experts.length + from + i) * width;
        multiplied.set(everyUnit.subarray(first, first + width), at * width);
      }
      inputs.add(read, choices.length);
      units.add(multiplied, choices.length);
    }
  };
  await runBatches(run, runner, () => {}, onLayer);
  const found = builders.map(({ inputs, units }, i): [number, ExpertSums] => [
    from + i,
    { inputs: inputs.finish(), units: units.finish() },
  ]);
  return { inputs: total?.finish(), experts: new Map(found) };
}

/** Puts the layer's outputs in the place of its inputs. */
export async function advance(run: LayerRun): Promise<void> {
  const runner = await loadLayer(run);
  try {
    await runBatches(run, runner, (batch, _, output) => run.states.write(batch, output));
  } finally {
    await runner.dispose();
  }
}

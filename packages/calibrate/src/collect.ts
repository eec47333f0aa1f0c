import {
  CoppiceError,
  type ExtraField,
  extraFields,
  layerSizes,
  type MoeModel,
  moeLayers,
  type RunEmitter,
  type Runner,
  type TapField,
  throwIfAborted,
} from "@coppice/core";
import {
  type CollectedStatistics,
  type DataKind,
  emptyLayer,
  type SourceOptions,
} from "./collected-statistics.js";
import { extraTapFields } from "./extra-sums.js";
import { LayerCollector } from "./layer-collector.js";
import { hashSequences } from "./sequence-hash.js";

export interface CollectOptions {
  /** A runner of the model, without anything running on it. */
  readonly runner: Runner;
  /**
   * Token ids: stretches of text, or prompts with their answers behind them. Every token counts once, whichever
   * sequence it stands in.
   */
  readonly sequences: readonly Int32Array[];
  /** What the data is called in the statistics file, such as a file name. */
  readonly name: string;
  /** What the sequences are. @default "text" */
  readonly kind?: DataKind;
  /** How the data became tokens, for the record. */
  readonly sourceOptions?: SourceOptions;
  /**
   * What to collect beside the rest: `change` and `peak` take some time, `outputSum` also memory, experts x hidden values
   * of 8 bytes per layer.
   */
  readonly extras?: readonly ExtraField[];
  /**
   * Most tokens of one run, which bounds memory; a longer sequence runs alone. Results do not depend on it beyond
   * the rounding of sums.
   * @default 4096
   */
  readonly tokenBudget?: number;
  /** Gets `progress` in tokens after every run. */
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}

/**
 * One pass over the data: what every router chose and every chosen expert put out, summed in float64. The gate
 * weights are those that really multiply the expert outputs, whatever the family's routing; where they multiply inputs
 * instead (Llama-4), see `LayerStatistics`.
 * @throws COPPICE_TASK_EMPTY, COPPICE_TASK_TOO_LONG, COPPICE_ABORTED; COPPICE_BACKEND_FAILED naming the layer and the
 * expert when an activation is NaN or infinite; those of `Runner.run`
 */
export async function collectStatistics(options: CollectOptions): Promise<CollectedStatistics> {
  const { runner, sequences, name, kind = "text", sourceOptions = {}, tokenBudget = 4096 } = options;
  const { emitter, signal } = options;
  // In file order, each once.
  const extras = extraFields.filter((field) => options.extras?.includes(field));
  const fields = new Set<TapField>(["routerLogits", "routing", "expertNorms"]);
  for (const extra of extras) for (const field of extraTapFields[extra]) fields.add(field);
  const { model } = runner;
  const total = checkedTokens(sequences, model);
  if (!(tokenBudget >= 1)) {
    throw new CoppiceError("COPPICE_USAGE", `tokenBudget is ${tokenBudget}, expected at least 1`);
  }
  const layers = moeLayers(model);
  const collectors = new Map(
    layers.map((layer) => [
      layer.index,
      new LayerCollector(emptyLayer(layer.index, layerSizes(layer, model), extras), {
        scalesInput: layer.feedForward.router.scalesInput === true,
        residualScale: model.residualScale ?? 1,
      }),
    ]),
  );
  // Layers behind the last MoE layer show nothing.
  const to = Math.max(...layers.map(({ index }) => index)) + 1;
  const start = performance.now();
  let done = 0;
  for (const batch of batches(sequences, tokenBudget)) {
    throwIfAborted(signal, `collecting statistics after ${done} of ${total} tokens`);
    let failure: unknown;
    await runner.run({
      sequences: batch,
      to,
      tap: {
        fields: [...fields],
        onLayer(shown) {
          // Thrown after the run, so that no backend has to survive a callback that throws.
          try {
            if (failure === undefined) collectors.get(shown.layer)?.add(shown);
          } catch (error) {
            failure = error;
          }
        },
      },
      ...(signal && { signal }),
    });
    if (failure !== undefined) throw failure;
    done += batch.reduce((sum, { length }) => sum + length, 0);
    const elapsed = performance.now() - start;
    emitter?.notify("progress", {
      stage: "collecting statistics",
      done,
      total,
      unit: "tokens",
      etaMs: (elapsed / done) * (total - done),
    });
  }
  return {
    model: model.fingerprint,
    tokens: total,
    sources: [
      {
        name,
        hash: hashSequences(sequences),
        sequences: sequences.length,
        tokens: total,
        kind,
        weight: 1,
        options: sourceOptions,
      },
    ],
    layers: [...collectors.values()].map((collector) => collector.finish()),
  };
}

function checkedTokens(sequences: readonly Int32Array[], model: MoeModel): number {
  let total = 0;
  sequences.forEach(({ length }, i) => {
    if (length === 0) throw new CoppiceError("COPPICE_TASK_EMPTY", `sequence ${i} of the data has no tokens`);
    if (length > model.contextLength) {
      throw new CoppiceError(
        "COPPICE_TASK_TOO_LONG",
        `sequence ${i} of the data has ${length} tokens, the model's context is ${model.contextLength}`,
        { hint: "split long text into pieces of at most the context", details: { sequence: i, length } },
      );
    }
    total += length;
  });
  if (total === 0) throw new CoppiceError("COPPICE_TASK_EMPTY", "the data has no sequences");
  if (moeLayers(model).length === 0) {
    throw new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      "the model has no MoE layers to collect statistics of",
    );
  }
  return total;
}

/** Consecutive sequences of at most `budget` tokens together. */
function* batches(sequences: readonly Int32Array[], budget: number): Generator<Int32Array[]> {
  let batch: Int32Array[] = [];
  let tokens = 0;
  for (const sequence of sequences) {
    if (batch.length > 0 && tokens + sequence.length > budget) {
      yield batch;
      batch = [];
      tokens = 0;
    }
    batch.push(sequence);
    tokens += sequence.length;
  }
  if (batch.length > 0) yield batch;
}

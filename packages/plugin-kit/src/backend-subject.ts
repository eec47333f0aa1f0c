import {
  type Backend,
  createRegistry,
  type LayerTap,
  type LoadRequest,
  type MoeModel,
  type Plan,
  type Registrable,
  Rng,
  type Runner,
  type RunRequest,
  type Tap,
  type TapField,
} from "@coppice/core";
import { expectEqual, expectThat } from "./compare.js";

/** A backend plugin, configured or not, or a function that makes a backend. */
export type BackendSource = Registrable | (() => Backend | Promise<Backend>);

/** Makes the backend under test. */
export async function createBackend(source: BackendSource): Promise<Backend> {
  if (typeof source === "function" && !("pluginName" in source)) return source();
  const registry = createRegistry([source]);
  const plugin = registry.list("backend")[0];
  if (!plugin) throw new Error("the plugin is not of kind backend");
  return registry.create("backend", plugin.pluginName, {}, undefined);
}

/** Loads the model, or layers of it, lets `work` use the runner, and disposes it whatever happens. */
export async function withRunner<T>(
  source: BackendSource,
  { model, weights, layers }: Pick<LoadRequest, "model" | "weights" | "layers">,
  work: (runner: Runner) => Promise<T>,
): Promise<T> {
  const backend = await createBackend(source);
  const runner = await backend.load({ model, weights, ...(layers && { layers }) });
  try {
    return await work(runner);
  } finally {
    await runner.dispose();
  }
}

/** Every position of every sequence. */
export function allPositions(sequences: readonly Int32Array[]): Int32Array[] {
  return sequences.map((sequence) => Int32Array.from(sequence, (_, i) => i));
}

/** Logits at every position, [T, vocab]. */
export async function allLogits(
  runner: Runner,
  sequences: readonly Int32Array[],
  plan?: Plan,
  more: Partial<RunRequest> = {},
): Promise<Float32Array> {
  const positions = allPositions(sequences);
  const { logits } = await runner.run({ sequences, positions, ...(plan && { plan }), ...more });
  if (!logits) throw new Error("positions were given without targets, yet the result has no logits");
  return logits;
}

/** Sequences of random tokens with the given lengths. */
export function randomSequences(model: MoeModel, lengths: readonly number[], seed = 7): Int32Array[] {
  const rng = Rng.fromSeed(seed);
  return lengths.map((length) => Int32Array.from({ length }, () => rng.integer(model.vocabSize)));
}

/** What a tap showed of one layer, internal batches joined. */
export interface LayerRecord {
  readonly layer: number;
  readonly topK: number;
  /** Places of the tokens in the packed order of the request. */
  readonly rows: number[];
  /** `everyRows` are places in the packed order, too. */
  readonly arrays: Record<ArrayField, number[]>;
}

const arrayFields = [
  "residual",
  "input",
  "routerLogits",
  "slots",
  "gates",
  "expertOutputs",
  "expertNorms",
  "expertPeaks",
  "output",
  "everyRows",
  "everyOutput",
  "everyUnit",
] as const satisfies readonly (keyof LayerTap)[];
export type ArrayField = (typeof arrayFields)[number];

/** Records copies of what a tap is shown, one record per layer in the order of the layers. */
function recordingTap(fields: readonly TapField[], every?: Uint8Array): { tap: Tap; records: LayerRecord[] } {
  const records: LayerRecord[] = [];
  const onLayer = (shown: LayerTap) => {
    const { layer, topK, tokens, rows } = shown;
    let record = records.find((one) => one.layer === layer);
    if (!record) {
      const arrays = Object.fromEntries(arrayFields.map((field) => [field, [] as number[]]));
      record = { layer, topK, rows: [], arrays: arrays as LayerRecord["arrays"] };
      records.push(record);
    }
    expectThat(rows.length === tokens, `layer ${layer} shows ${tokens} tokens with ${rows.length} rows`);
    record.rows.push(...rows);
    for (const field of arrayFields) {
      const values = shown[field] ?? [];
      for (const value of values)
        record.arrays[field].push(field === "everyRows" ? (rows[value] as number) : value);
    }
  };
  return { tap: { fields, ...(every && { every }), onLayer }, records };
}

/**
 * What a run shows to a tap, tokens in packed order whatever batches the backend makes; fails unless every layer shows
 * every token once.
 */
export async function tapped(
  runner: Runner,
  request: Omit<RunRequest, "tap">,
  fields: readonly TapField[],
  every?: Uint8Array,
): Promise<LayerRecord[]> {
  const { tap, records } = recordingTap(fields, every);
  await runner.run({ ...request, tap });
  const tokens = request.sequences.reduce((sum, { length }) => sum + length, 0);
  return records.map(({ layer, topK, rows, arrays }) => {
    const all = Array.from({ length: tokens }, (_, row) => row);
    expectEqual(
      rows.toSorted((a, b) => a - b),
      all,
      `rows shown of layer ${layer}`,
    );
    const sorted = arrayFields.map((field) => {
      const places = field.startsWith("every") ? arrays.everyRows : rows;
      return [field, inOrder(arrays[field], places)];
    });
    return { layer, topK, rows: all, arrays: Object.fromEntries(sorted) };
  });
}

/** `values` [places, ...] by ascending place. */
function inOrder(values: readonly number[], places: readonly number[]): number[] {
  const size = values.length / places.length;
  const order = [...places.keys()].sort((a, b) => (places[a] as number) - (places[b] as number));
  return order.flatMap((at) => values.slice(at * size, (at + 1) * size));
}

import {
  type Backend,
  createRegistry,
  type LayerTap,
  type MoeModel,
  type Plan,
  type Registrable,
  Rng,
  type Runner,
  type RunRequest,
  type TapField,
  type WeightReader,
} from "@coppice/core";

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

/** Loads the model, lets `work` use the runner, and disposes it whatever happens. */
export async function withRunner<T>(
  source: BackendSource,
  loaded: { readonly model: MoeModel; readonly weights: WeightReader },
  work: (runner: Runner) => Promise<T>,
): Promise<T> {
  const backend = await createBackend(source);
  const runner = await backend.load({ model: loaded.model, weights: loaded.weights });
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
  tokens: number;
  readonly topK: number;
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
] as const satisfies readonly (keyof LayerTap)[];
export type ArrayField = (typeof arrayFields)[number];

/** Records copies of what a tap is shown, one record per layer in the order of the layers. */
export function recordingTap(fields: readonly TapField[]): {
  tap: NonNullable<RunRequest["tap"]>;
  records: LayerRecord[];
} {
  const records: LayerRecord[] = [];
  const onLayer = (shown: LayerTap) => {
    let record = records.find(({ layer }) => layer === shown.layer);
    if (!record) {
      const arrays = Object.fromEntries(arrayFields.map((field) => [field, [] as number[]]));
      record = { layer: shown.layer, tokens: 0, topK: shown.topK, arrays: arrays as LayerRecord["arrays"] };
      records.push(record);
    }
    record.tokens += shown.tokens;
    for (const field of arrayFields) {
      for (const value of shown[field] ?? []) record.arrays[field].push(value);
    }
  };
  return { tap: { fields, onLayer }, records };
}

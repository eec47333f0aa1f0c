import {
  type Backend,
  CoppiceError,
  type LayerRange,
  type MoeModel,
  type RunEmitter,
  type Runner,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import { addStatistics, type CollectedStatistics } from "./collected-statistics.js";
import { Collection, type CollectionOptions } from "./collection.js";
import { layerRanges } from "./layer-ranges.js";
import { decodeStatistics, encodeStatistics } from "./statistics-file.js";
import { statisticsBytes } from "./statistics-size.js";
import { StreamFiles } from "./stream-files.js";
import { hiddenBytes, type StreamEstimate, StreamPace } from "./stream-pace.js";
import { StreamRecord, streamIdentity } from "./stream-record.js";
import type { WorkStore } from "./work-store.js";

export interface LayerStreamOptions extends CollectionOptions {
  readonly model: MoeModel;
  readonly weights: WeightReader;
  readonly backend: Backend;
  /** Where hidden states and finished layers are kept until the pass is done. */
  readonly store: WorkStore;
  /**
   * Bytes of memory that the whole process may take: as many layers are loaded at a time as fit an estimate of it.
   * Default: one layer at a time.
   */
  readonly memory?: number;
  /** What computes, such as a version of the backend; a pass is continued by the same only. */
  readonly engine?: string;
  /** Called once, when a layer with experts has run its first batch. */
  readonly onEstimate?: (estimate: StreamEstimate) => void;
  /** Gets `progress` in tokens x layers after every run, with an estimate of the time left. */
  readonly emitter?: RunEmitter;
}

/**
 * `collectStatistics` for models that are larger than memory: some layers at a time, all data through these before the
 * next ones are loaded, hidden states between them in the store. The result has the same bits as that of the same
 * `parts` and `tokenBudget` in memory. A pass that was ended continues with the first layer that is not done; the store
 * is emptied by `clearLayerStream` once the result is safe.
 *
 * Memory: float32 weights of the layers that are loaded (the embedding with the first, the head with the last), one
 * batch, the statistics of these layers, and in the end all statistics.
 * @throws what `collectStatistics` throws, COPPICE_USAGE when not even one layer fits into `memory`,
 * COPPICE_RUN_IDENTITY, COPPICE_IO_NO_SPACE before anything is loaded, COPPICE_IO_READ, COPPICE_IO_WRITE
 */
export async function collectByLayers(options: LayerStreamOptions): Promise<CollectedStatistics> {
  const { model, weights, backend, store, memory, engine, signal } = options;
  const collection = new Collection(model, options);
  const identity = streamIdentity(collection, options, engine);
  const record = await StreamRecord.open(store, identity, collection.end, signal);
  const files = new StreamFiles(store);
  const ranges = layerRanges(collection, record.next, memory);
  await checkSpace(collection, ranges, store);
  await record.advance(record.next);
  await files.removeAllBut(record.next);
  const pace = new StreamPace(collection, ranges);
  for (const range of ranges) {
    throwIfAborted(signal, `collecting statistics of layer ${range.from} of ${collection.end}`);
    const start = performance.now();
    await using runner = await backend.load({ model, weights, layers: range, ...(signal && { signal }) });
    pace.loaded((performance.now() - start) / 1000);
    const statistics = await runRange({ collection, files, pace, runner, range, options });
    if (statistics) await files.writeLayers(range, encodeStatistics(statistics));
    await record.advance(range.to);
    await files.removeAllBut(range.to);
  }
  return assemble(collection, files);
}

/** Removes the files of a pass whose result is safe. What others put into its store stays. */
export async function clearLayerStream(store: WorkStore): Promise<void> {
  await new StreamFiles(store).removeAll();
}

interface RangeRun {
  readonly collection: Collection;
  readonly files: StreamFiles;
  readonly pace: StreamPace;
  readonly runner: Runner;
  readonly range: LayerRange;
  readonly options: LayerStreamOptions;
}

/** All data through some layers. @returns their statistics, undefined when none of them has experts */
async function runRange(run: RangeRun): Promise<CollectedStatistics | undefined> {
  const { collection, files, pace, runner, range, options } = run;
  const { emitter, onEstimate, signal } = options;
  const { from, to } = range;
  const layers = collection.layers.filter(({ index }) => index >= from && index < to);
  const total = collection.source.tokens * collection.end;
  let sum: CollectedStatistics | undefined;
  let number = 0;
  let estimated = pace.estimate() !== undefined;
  for (const part of collection.parts) {
    const collectors = collection.collectors(part, layers);
    for (const batch of part.batches) {
      throwIfAborted(signal, `collecting statistics of layer ${from} of ${collection.end}`);
      const start = performance.now();
      const { tap, finish } = collection.tap(batch, collectors);
      const values = batch.tokens * collection.model.hiddenSize;
      const hidden = from > 0 ? await files.readHidden(from, number, values) : undefined;
      const { boundaries } = await runner.run({
        sequences: batch.sequences,
        from,
        to,
        ...(hidden && { hidden }),
        ...(to < collection.end && { boundaries: [to] }),
        ...(layers.length > 0 && { tap }),
        ...(signal && { signal }),
      });
      finish();
      if (to < collection.end) await files.writeHidden(to, number, boundaries.get(to) as Float32Array);
      number++;
      pace.ran(batch.tokens, (performance.now() - start) / 1000);
      const estimate = pace.estimate();
      if (estimate && !estimated) onEstimate?.(estimate);
      estimated ||= estimate !== undefined;
      emitter?.notify("progress", {
        stage: `collecting statistics, ${nameRange(range)} of ${collection.end}`,
        done: pace.done,
        total,
        unit: "tokens x layers",
        ...(estimate && { etaMs: 1000 * estimate.seconds }),
      });
    }
    const statistics = collection.partStatistics(
      part,
      [...collectors.values()].map((collector) => collector.finish()),
    );
    sum = sum ? addStatistics(sum, statistics) : statistics;
  }
  return layers.length > 0 ? sum : undefined;
}

function nameRange({ from, to }: LayerRange): string {
  return to === from + 1 ? `layer ${from}` : `layers ${from} to ${to - 1}`;
}

/** The statistics of all layers, which were written by themselves. */
async function assemble(collection: Collection, files: StreamFiles): Promise<CollectedStatistics> {
  let whole: CollectedStatistics | undefined;
  for await (const { name, bytes } of files.readLayers()) {
    const part = await decodeStatistics(bytes, name);
    whole = whole ? { ...whole, layers: [...whole.layers, ...part.layers] } : part;
  }
  const found = whole?.layers.map(({ layer }) => layer).join(" ");
  const expected = collection.layers.map(({ index }) => index).join(" ");
  if (whole && found === expected && whole.model === collection.model.fingerprint) return whole;
  throw new CoppiceError(
    "COPPICE_STATS_FORMAT",
    `the work holds statistics of the layers ${found || "none"}, expected ${expected}`,
    { hint: "remove it and begin anew" },
  );
}

/** Room that a file system needs beyond the bytes of the files. */
const spareRoom = 1.01;

async function checkSpace(
  collection: Collection,
  ranges: readonly LayerRange[],
  store: WorkStore,
): Promise<void> {
  const free = await store.freeBytes();
  // Of a pass that continues, the input of the next layer is there already.
  const there = ranges[0]?.from ? hiddenBytes(collection, ranges.slice(0, 1)) : 0;
  const hidden = hiddenBytes(collection, ranges) - there;
  const layers = ranges.flatMap(({ from, to }) =>
    collection.layers.filter(({ index }) => index >= from && index < to),
  );
  const sums = layers.reduce(
    (sum, { index }) => sum + statisticsBytes(collection.model, collection.content, index),
    0,
  );
  // The statistics once more, as the file that they become.
  const needed = Math.ceil(
    spareRoom * (hidden + sums + statisticsBytes(collection.model, collection.content)),
  );
  if (free === undefined || free >= needed) return;
  throw new CoppiceError(
    "COPPICE_IO_NO_SPACE",
    `${store.label} has ${free} bytes free; hidden states and statistics need up to ${needed}`,
    {
      hint: "free some, keep the work elsewhere, or use less data",
      details: { free, needed },
    },
  );
}

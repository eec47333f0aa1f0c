import { access, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type CollectionOptions,
  clearLayerStream,
  collectByLayers,
  collectStatistics,
  type LayerStreamOptions,
  type StreamEstimate,
  type WorkStore,
} from "@coppice/calibrate";
import { openWorkFolder } from "@coppice/calibrate/node";
import { type Backend, type LayerRange, type Progress, RunEmitter, type TensorRef } from "@coppice/core";
import { type MemoryModel, memoryModel, randomModel } from "@coppice/plugin-kit";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { load, models, randomSequences, referenceBackend } from "./models.js";

/** A store in memory, which may stop at the n-th write as a process does that is killed. */
function memoryStore(free?: number) {
  const files = new Map<string, Uint8Array>();
  let left = Number.POSITIVE_INFINITY;
  const store: WorkStore = {
    label: "the work",
    list: async () => [...files.keys()],
    read: async (name) => (files.get(name) as Uint8Array).slice(),
    write: async (name, bytes) => {
      if (left-- <= 0) throw new Error("killed");
      files.set(name, bytes.slice());
    },
    remove: async (name) => {
      files.delete(name);
    },
    freeBytes: async () => free,
  };
  return {
    files,
    store,
    stopAfter: (writes: number) => {
      left = writes;
    },
  };
}

/** A backend that notes what was loaded and run, and fails at the n-th run. */
async function watched() {
  const backend = await referenceBackend();
  const seen = { loads: [] as LayerRange[], runs: 0, open: 0, mostOpen: 0 };
  const watching: Backend = {
    ...backend,
    async load(request) {
      seen.loads.push(request.layers as LayerRange);
      seen.mostOpen = Math.max(seen.mostOpen, ++seen.open);
      const runner = await backend.load(request);
      return Object.create(runner, {
        model: { value: runner.model },
        run: {
          value: (...args: Parameters<typeof runner.run>) => {
            seen.runs++;
            return runner.run(...args);
          },
        },
        [Symbol.asyncDispose]: {
          value: async () => {
            seen.open--;
            await runner.dispose();
          },
        },
      });
    },
  };
  return { backend: watching, seen };
}

const heavy = {
  extras: ["change", "peak", "outputSum", "everyOutputSum", "outputGram", "unitSquares"],
  sample: { limit: 9, with: ["inputs", "grams", "units"] },
  tokenBudget: 10,
  parts: 3,
} as const satisfies Partial<CollectionOptions>;

async function streamOf(source: MemoryModel, more: Partial<LayerStreamOptions> = {}) {
  const { files, store, stopAfter } = memoryStore();
  const { backend, seen } = await watched();
  const { model, weights } = source;
  const sequences = randomSequences(model.vocabSize, [9, 2, 14, 1, 6, 3]);
  const options: LayerStreamOptions = {
    model,
    weights,
    backend,
    store,
    sequences,
    name: "test",
    ...heavy,
    ...more,
  };
  return { options, files, stopAfter, seen };
}

describe.each([
  "mixtral",
  "qwen3_moe",
  "latent-attention",
  "low-rank-queries",
  "scaled-inputs",
  "a model with dense layers and gates that are not normalised",
])("statistics of %s, layer by layer", (name) => {
  test("are those of the pass in memory, to the last bit", async () => {
    const source = await (models[name] as () => Promise<MemoryModel>)();
    const { options, files, seen } = await streamOf(source);
    await using runner = await load(source);
    const expected = await collectStatistics({ ...options, runner });
    expect(await collectByLayers(options)).toEqual(expected);
    expect(seen.mostOpen).toBe(1);
    expect(seen.loads).toEqual(seen.loads.map((_, i) => ({ from: i, to: i + 1 })));
    expect([...files.keys()].filter((file) => file.startsWith("hidden"))).toEqual([]);
    // Once more: all layers are done, so that nothing is loaded again.
    expect(await collectByLayers(options)).toEqual(expected);
    expect(seen.loads).toHaveLength(source.model.layers.findLastIndex(isMoe) + 1);
    await clearLayerStream(options.store);
    expect([...files.keys()]).toEqual([]);
  });
});

function isMoe({ feedForward }: MemoryModel["model"]["layers"][number]): boolean {
  return feedForward.kind === "moe";
}

describe("a layer-streamed pass", () => {
  const source = randomModel({ seed: 5, layers: 5, denseLayers: [1] });

  test("loads as many layers as memory allows", async () => {
    const { options } = await streamOf(source);
    const expected = await collectByLayers(options);
    const counts: number[] = [];
    for (const memory of [600e6, 300e6 + 2 ** 27 + 1e6, 300e6 + 2 ** 27 + 60e3]) {
      const { options: other, seen } = await streamOf(source, { memory });
      expect(await collectByLayers(other)).toEqual(expected);
      counts.push(seen.loads.length);
      expect(seen.loads.at(-1)?.to).toBe(5);
    }
    expect(counts[0]).toBe(1);
    expect(counts[2]).toBeGreaterThan(1);
    const { options: little, seen, files } = await streamOf(source, { memory: 1e6 });
    await expect(collectByLayers(little)).rejects.toMatchObject({
      code: "COPPICE_USAGE",
      message: expect.stringContaining("layer 0 alone"),
    });
    expect(seen.loads).toEqual([]);
    expect([...files.keys()]).toEqual([]);
  });

  test("continues after it was killed, at whatever write", async () => {
    const source = randomModel({ seed: 5, layers: 3 });
    const plain = await streamOf(source);
    const expected = await collectByLayers(plain.options);
    const writes = 40;
    let done = false;
    for (let kill = 0; kill < writes && !done; kill++) {
      const { options, stopAfter, seen, files } = await streamOf(source);
      stopAfter(kill);
      const first = await collectByLayers(options).catch((error: unknown) => error);
      done = !(first instanceof Error);
      const before = seen.loads.length;
      stopAfter(Number.POSITIVE_INFINITY);
      // With more memory the ranges are others than those of files that the record does not know yet.
      const memory = kill % 4 === 0 ? {} : { memory: 1e9 };
      expect(await collectByLayers({ ...options, ...memory })).toEqual(expected);
      // At most the layer that was in hand is run again.
      if (!done) expect(seen.loads.length).toBeLessThanOrEqual(before === 0 ? 3 : 4);
      else expect(seen.loads.length).toBe(3);
      expect([...files.keys()].filter((file) => file.startsWith("hidden"))).toEqual([]);
    }
    expect(done).toBe(true);
  });

  test("may go on with other memory, and leaves files of others alone", async () => {
    const { options, stopAfter, files, seen } = await streamOf(source);
    const expected = await collectByLayers((await streamOf(source)).options);
    files.set("notes.txt", new Uint8Array(3));
    stopAfter(14);
    await expect(collectByLayers(options)).rejects.toThrow("killed");
    const layers = seen.loads.length;
    expect(layers).toBeGreaterThan(1);
    stopAfter(Number.POSITIVE_INFINITY);
    expect(await collectByLayers({ ...options, memory: 1e9 })).toEqual(expected);
    expect(seen.loads.slice(layers)).toEqual([{ from: layers - 1, to: 5 }]);
    await clearLayerStream(options.store);
    expect([...files.keys()]).toEqual(["notes.txt"]);
  });

  test("continues only what began in the same way", async () => {
    const { options } = await streamOf(source);
    await collectByLayers(options);
    const others: Partial<LayerStreamOptions>[] = [
      { sequences: options.sequences.slice(1) },
      { extras: [] },
      { sample: { limit: 8 } },
      { tokenBudget: 11 },
      { parts: 2 },
      { engine: "another" },
      { model: { ...source.model, fingerprint: "other" } },
    ];
    for (const other of others) {
      await expect(collectByLayers({ ...options, ...other })).rejects.toMatchObject({
        code: "COPPICE_RUN_IDENTITY",
        message: expect.stringContaining("the work"),
        hint: expect.stringContaining("remove it"),
      });
    }
  });

  test("refuses a record or hidden states that are damaged", async () => {
    const { options, files, stopAfter } = await streamOf(source);
    stopAfter(14);
    await expect(collectByLayers(options)).rejects.toThrow("killed");
    stopAfter(Number.POSITIVE_INFINITY);
    const saved = new Map(files);
    const restore = () => {
      files.clear();
      for (const [name, bytes] of saved) files.set(name, bytes);
    };
    const record = new TextDecoder().decode(files.get("calibration.json"));
    for (const text of ["", "{", "null", "[]", record.replace(/"next": \d+/, '"next": 99'), "{}"]) {
      restore();
      files.set("calibration.json", new TextEncoder().encode(text));
      await expect(collectByLayers(options)).rejects.toMatchObject({ code: "COPPICE_RUN_IDENTITY" });
    }
    restore();
    const next = JSON.parse(record).next as number;
    const [hidden] = [...files.keys()].filter((name) => name.startsWith(`hidden-0000${next}`)).sort();
    files.set(hidden as string, (files.get(hidden as string) as Uint8Array).slice(4));
    await expect(collectByLayers(options)).rejects.toMatchObject({
      code: "COPPICE_IO_READ",
      message: expect.stringContaining(hidden as string),
    });
    restore();
    const [layers] = [...files.keys()].filter((name) => name.startsWith("layers-"));
    files.delete(layers as string);
    await expect(collectByLayers(options)).rejects.toMatchObject({ code: "COPPICE_STATS_FORMAT" });
    restore();
    await expect(collectByLayers(options)).resolves.toBeDefined();
  });

  test("asks for the room that it needs before it loads anything", async () => {
    const { options, seen } = await streamOf(source);
    const { store } = memoryStore(5_000);
    await expect(collectByLayers({ ...options, store })).rejects.toMatchObject({
      code: "COPPICE_IO_NO_SPACE",
      details: { free: 5_000, needed: expect.any(Number) },
    });
    expect(seen.loads).toEqual([]);
    await expect(collectByLayers({ ...options, store: memoryStore(1e7).store })).resolves.toBeDefined();
  });

  test("says once how long it takes, and then how far it is", async () => {
    const emitter = new RunEmitter();
    const seen: Progress[] = [];
    emitter.on("progress", (progress) => seen.push(progress));
    const estimates: StreamEstimate[] = [];
    let progressBefore = -1;
    const onEstimate = (estimate: StreamEstimate) => {
      progressBefore = seen.length;
      estimates.push(estimate);
    };
    const dense = randomModel({ seed: 5, layers: 4, denseLayers: [0] });
    const { options } = await streamOf(dense, { emitter, onEstimate });
    await collectByLayers(options);
    expect(estimates).toHaveLength(1);
    // The first layer has no experts; its batches say little about the others.
    const batches = seen.length / 4;
    expect(progressBefore).toBe(batches);
    const [estimate] = estimates as [StreamEstimate];
    const { tokens } = estimate.measured;
    expect(estimate).toMatchObject({
      measured: { layers: { from: 1, to: 2 } },
      loads: 4,
      tokenLayers: 35 * 3 - tokens,
      diskBytes: 2 * 35 * dense.model.hiddenSize * 4,
    });
    const bytesOf = (ref: TensorRef | undefined) => (ref ? ref.end - ref.begin : 0);
    expect(estimate.bytes).toBeGreaterThan(bytesOf(dense.model.head));
    for (const value of [estimate.seconds, estimate.bytesPerSecond, estimate.memoryBytes]) {
      expect(value).toBeGreaterThan(0);
    }
    const done = seen.map((progress) => progress.done);
    expect(done).toEqual([...done].sort((a, b) => a - b));
    expect(seen.at(-1)).toMatchObject({ done: 140, total: 140, unit: "tokens x layers", etaMs: 0 });
    expect(seen[0]?.etaMs).toBeUndefined();
    expect(seen[0]?.stage).toContain("layer 0 of 4");
  });

  test("stops when told, and names what is not finite", async () => {
    const { options, seen } = await streamOf(source, { signal: AbortSignal.abort() });
    await expect(collectByLayers(options)).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
    expect(seen.loads).toEqual([]);
    const tensors = new Map(source.tensors);
    const moe = source.model.layers[2]?.feedForward;
    const name = moe?.kind === "moe" ? (moe.experts[1]?.down.name ?? "") : "";
    tensors.set(name, new Float32Array((tensors.get(name) as Float32Array).length).fill(3e38));
    const damaged = await streamOf(memoryModel(source.model, tensors));
    await expect(collectByLayers(damaged.options)).rejects.toMatchObject({
      code: "COPPICE_BACKEND_FAILED",
      message: expect.stringContaining("expert 1 of layer 2"),
    });
    expect(damaged.seen.open).toBe(0);
  });
});

describe("a work folder", () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "calibration-"));
  });
  afterEach(() => rm(folder, { recursive: true }));

  test("holds a pass", async () => {
    const source = randomModel({ seed: 5, layers: 3 });
    const path = join(folder, "deep", "work");
    const store = await openWorkFolder(path);
    const { options } = await streamOf(source, { store });
    const expected = await collectByLayers((await streamOf(source)).options);
    expect(await collectByLayers(options)).toEqual(expected);
    expect((await readdir(path)).sort()).toEqual([
      "calibration.json",
      ...[0, 1, 2].map((i) => `layers-0000${i}-0000${i + 1}.safetensors`),
    ]);
    await clearLayerStream(store);
    expect(await readdir(path)).toEqual([]);
  });

  test("keeps files whole, and is rid of those that a killed process left", async () => {
    const store = await openWorkFolder(folder);
    await store.write("a", Uint8Array.of(1, 2));
    await store.write("a", Uint8Array.of(3));
    expect([...(await store.read("a"))]).toEqual([3]);
    await writeFile(join(folder, ".b.7.0123abcd.tmp"), "half");
    expect((await (await openWorkFolder(folder)).list()).sort()).toEqual(["a"]);
    expect(await store.freeBytes()).toBeGreaterThan(0);
    await store.remove("a");
    await store.remove("a");
    await expect(access(join(folder, "a"))).rejects.toThrow();
    await expect(store.read("a")).rejects.toMatchObject({ code: "COPPICE_IO_READ" });
    await expect(store.write("x/y", new Uint8Array(1))).rejects.toMatchObject({ code: "COPPICE_IO_WRITE" });
    await writeFile(join(folder, "file"), "text");
    await expect(openWorkFolder(join(folder, "file"))).rejects.toMatchObject({ code: "COPPICE_IO_WRITE" });
    await truncate(join(folder, "file"), 0);
    expect(await readFile(join(folder, "file"), "utf8")).toBe("");
  });
});

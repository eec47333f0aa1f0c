import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serializeSafetensors, type TensorBytes } from "@coppice/checkpoint";
import { createPlan, isCoppiceError, modelSize, moeLayers, type Plan, type Runner } from "@coppice/core";
import { randomModel, slowForward } from "@coppice/plugin-kit";
import {
  decodeTrace,
  encodeTrace,
  noExpert,
  type RoutingTrace,
  sliceTrace,
  TraceRecorder,
  traceTokens,
} from "@coppice/profiles";
import { readTrace, writeTrace } from "@coppice/profiles/node";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { backend, expectCode, models, sequences } from "./models.js";

const source = randomModel({ experts: 6, layers: 3, denseLayers: [1], vocab: 30, seed: 8 });
const { model } = source;

/** Choices of the slow model, [layer][token][k], experts of the whole model. */
function slowRoutes(of: typeof source, ids: Int32Array, plan?: Plan): number[][][] {
  const experts = new Map(plan?.layers.map((layer) => [layer.layer, layer.experts]));
  return slowForward(of, [...ids], plan).layers.map(({ layer, choices }) =>
    choices.map((token) =>
      token.map(({ slot, gate }) =>
        slot < 0 || gate === 0 ? noExpert : (experts.get(layer)?.[slot] ?? slot),
      ),
    ),
  );
}

async function recorded(plan?: Plan): Promise<{ trace: RoutingTrace; batch: Int32Array[] }> {
  await using runner = await (await backend()).load(source);
  const recorder = new TraceRecorder(model, { name: "random", ...(plan && { plan }) });
  const batch = sequences(model.vocabSize, [5, 3]);
  await recorder.read(runner, batch, [3, 3], plan ? { plan } : {});
  return { trace: recorder.finish(), batch };
}

describe.each(Object.keys(models))("a trace of a model with %s", (name) => {
  test("has the experts that every token runs", async () => {
    const of = await (models[name] as (typeof models)[string])();
    await using runner = await (await backend()).load(of);
    const recorder = new TraceRecorder(of.model, { name });
    const [first, second] = sequences(of.model.vocabSize, [4, 6]) as [Int32Array, Int32Array];
    await recorder.read(runner, [first, second], [4, 2]);
    const trace = recorder.finish();
    expect(trace.sequences).toEqual([
      { prefill: 4, decode: 0 },
      { prefill: 2, decode: 4 },
    ]);
    const expected = [first, second].map((ids) => slowRoutes(of, ids));
    trace.layers.forEach(({ routes }, i) => {
      expect([...routes]).toEqual(expected.flatMap((layers) => layers[i]?.flat() ?? []));
    });
    expect(await decodeTrace(encodeTrace(trace), "t")).toEqual(trace);
    const experts = trace.layers.reduce((sum, layer) => sum + layer.experts * layer.expertBytes, 0);
    const { bytes } = modelSize(of.model);
    expect(Math.abs(trace.otherBytes + experts - bytes)).toBeLessThan(trace.layers.length);
  });
});

describe("TraceRecorder", () => {
  test("tells the prefill of cached sequences from their decoding", async () => {
    await using runner = await (await backend()).load(source);
    const recorder = new TraceRecorder(model, { name: "cached" });
    const watched = recorder.watch(runner);
    const [a, b] = sequences(model.vocabSize, [4, 2]) as [Int32Array, Int32Array];
    const cache = watched.createCache(2);
    await watched.run({ sequences: [a, b], cache });
    await watched.run({ sequences: [Int32Array.of(7), Int32Array.of(9)], cache });
    await watched.run({ sequences: [Int32Array.of(8), Int32Array.of(1)], cache });
    await watched.run({ sequences: [b] });
    const trace = recorder.finish();
    expect(trace.sequences).toEqual([
      { prefill: 4, decode: 2 },
      { prefill: 2, decode: 2 },
      { prefill: 2, decode: 0 },
    ]);
    expect(traceTokens(trace)).toEqual({ prefill: 8, decode: 4 });
    const expected = [Int32Array.of(...a, 7, 8), Int32Array.of(...b, 9, 1), b].map((ids) =>
      slowRoutes(source, ids),
    );
    trace.layers.forEach(({ routes }, i) => {
      expect([...routes]).toEqual(expected.flatMap((layers) => layers[i]?.flat() ?? []));
    });
  });

  test("names experts of the whole model under a plan, and skipped choices as none", async () => {
    const layers = moeLayers(model).map(({ index }) => ({
      layer: index,
      experts: [5, 2, 4],
      skip: { rule: "ratio", threshold: 0.9 } as const,
    }));
    const plan = createPlan(model, layers);
    const { trace, batch } = await recorded(plan);
    expect(trace.planned).toBe(true);
    const expected = batch.map((ids) => slowRoutes(source, ids, plan));
    trace.layers.forEach(({ routes }, i) => {
      expect([...routes]).toEqual(expected.flatMap((layer) => layer[i]?.flat() ?? []));
      expect(routes).toContain(noExpert);
    });
  });

  test("takes choices with a gate weight of 0 for none, and tokens in whatever order they come", async () => {
    const layers = moeLayers(model).map(({ index }) => index);
    const stub: Runner = {
      model,
      createCache: () => ({ lengths: [], dispose() {} }),
      dispose: async () => {},
      [Symbol.asyncDispose]: async () => {},
      async run({ tap }) {
        for (const layer of layers) {
          for (const [row, slots, gates] of [
            [1, [3, 4], [0.5, 0]],
            [0, [1, -1], [1, 0]],
          ] as const) {
            const shown = {
              rows: Int32Array.of(row),
              slots: Int32Array.from(slots),
              gates: Float32Array.from(gates),
            };
            tap?.onLayer({ layer, tokens: 1, topK: 2, ...shown });
          }
        }
        return { boundaries: new Map(), tokenLayers: 0 };
      },
    };
    const recorder = new TraceRecorder(model, { name: "stub" });
    await recorder.watch(stub).run({ sequences: sequences(model.vocabSize, [2]) });
    for (const { routes } of recorder.finish().layers)
      expect([...routes]).toEqual([1, noExpert, 3, noExpert]);
  });

  test("passes on what another tap asks for", async () => {
    await using runner = await (await backend()).load(source);
    const watched = new TraceRecorder(model, { name: "t" }).watch(runner);
    const seen: number[] = [];
    await watched.run({
      sequences: sequences(model.vocabSize, [2]),
      tap: { fields: ["input"], onLayer: ({ layer, input }) => input && seen.push(layer) },
    });
    expect(seen).toEqual([0, 2]);
  });

  test("refuses runs that end early, other numbers of choices, and to finish with nothing", async () => {
    await using runner = await (await backend()).load(source);
    const recorder = new TraceRecorder(model, { name: "t" });
    await expectCode(() => recorder.finish(), "COPPICE_USAGE");
    const watched = recorder.watch(runner);
    const batch = sequences(model.vocabSize, [2]);
    await expectCode(() => watched.run({ sequences: batch, to: 1 }), "COPPICE_USAGE", "MoE layer 1");
    await watched.run({ sequences: batch });
    const plan = createPlan(model, [{ layer: 0, experts: [0, 1, 2], topK: 1 }]);
    await expectCode(() => watched.run({ sequences: batch, plan }), "COPPICE_USAGE", "2 were expected");
    expect(recorder.finish().sequences.length).toBe(1);
  });
});

describe("a trace file", () => {
  test("takes two bytes per choice where there are many experts", async () => {
    const { trace } = await recorded();
    const wide = { ...trace, layers: trace.layers.map((layer) => ({ ...layer, experts: 300 })) };
    wide.layers[0]?.routes.set([299, 255, noExpert]);
    expect(await decodeTrace(encodeTrace(wide), "t")).toEqual(wide);
    const bytes = (of: RoutingTrace) => encodeTrace(of).length;
    expect(bytes(wide)).toBeGreaterThan(bytes(trace));
  });

  test("slices into sequences", async () => {
    const { trace } = await recorded();
    const [first, second] = [sliceTrace(trace, 0, 1), sliceTrace(trace, 1, 2)];
    expect(first.sequences).toEqual([{ prefill: 3, decode: 2 }]);
    expect([...(second.layers[1]?.routes ?? [])]).toEqual([...(trace.layers[1]?.routes ?? [])].slice(10));
    expect(await decodeTrace(encodeTrace(second), "t")).toEqual(second);
  });

  const parts = async () => {
    const { trace } = await recorded();
    const tensor = (
      dtype: TensorBytes["dtype"],
      shape: number[],
      values: number[] | Uint8Array,
    ): TensorBytes => ({
      dtype,
      shape,
      bytes: Uint8Array.from(values),
    });
    const routes = (values: ArrayLike<number>) => tensor("U8", [8, 2], Array.from(values));
    const [a, b] = trace.layers.map((layer) => layer.routes) as [Uint16Array, Uint16Array];
    const tensors = new Map([
      ["sequences", tensor("U32", [2, 2], [3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])],
      ["layers.0.routes", routes(a)],
      ["layers.2.routes", routes(b)],
    ]);
    const header = {
      ...{ model: trace.model, name: trace.name, otherBytes: trace.otherBytes, tokenBytes: trace.tokenBytes },
      layers: trace.layers.map(({ routes: _, ...layer }) => layer),
    };
    return { trace, tensors, header, tensor, routes };
  };
  type Parts = Awaited<ReturnType<typeof parts>>;
  const write = ({ tensors, header }: Pick<Parts, "tensors" | "header">, more: Record<string, string> = {}) =>
    serializeSafetensors(
      tensors,
      new Map(
        Object.entries({ format: "coppice.trace", version: "1", trace: JSON.stringify(header), ...more }),
      ),
    );

  test("is what its description says", async () => {
    const all = await parts();
    expect(await decodeTrace(write(all), "t")).toEqual(all.trace);
    const planned = { ...all.trace, planned: true };
    expect(await decodeTrace(encodeTrace(planned), "t")).toEqual(planned);
  });

  const bad: Readonly<Record<string, (all: Parts) => Uint8Array>> = {
    "no safetensors": () => Uint8Array.of(1, 2, 3),
    "another format": (all) => write(all, { format: "coppice.statistics" }),
    "another version": (all) => write(all, { version: "2" }),
    "a header that is no JSON": (all) => write(all, { trace: "{" }),
    "a header without layers": (all) => write({ ...all, header: { ...all.header, layers: [] } }),
    "a tensor too many": (all) =>
      write({ ...all, tensors: new Map([...all.tensors, ["more", all.tensor("U8", [1], [0])]]) }),
    "layers out of order": (all) =>
      write({ ...all, header: { ...all.header, layers: [...all.header.layers].reverse() } }),
    "an expert that is not there": (all) =>
      write({
        ...all,
        tensors: new Map([...all.tensors, ["layers.0.routes", all.routes(new Uint8Array(16).fill(6))]]),
      }),
    "too few tokens": (all) =>
      write({
        ...all,
        tensors: new Map([...all.tensors, ["layers.0.routes", all.tensor("U8", [1, 2], [0, 1])]]),
      }),
    "an empty sequence": (all) =>
      write({
        ...all,
        tensors: new Map([...all.tensors, ["sequences", all.tensor("U32", [1, 2], new Uint8Array(8))]]),
      }),
    "no sequences": (all) =>
      write({ ...all, tensors: new Map([...all.tensors, ["sequences", all.tensor("U32", [0, 2], [])]]) }),
  };

  test.each(Object.keys(bad))("with %s is refused", async (name) => {
    const bytes = bad[name]?.(await parts()) as Uint8Array;
    await expectCode(() => decodeTrace(bytes, "t.safetensors"), "COPPICE_TRACE_FORMAT", "t.safetensors");
  });

  test("that is damaged anywhere is read or refused, and nothing else", async () => {
    const { trace } = await recorded();
    const bytes = encodeTrace(trace);
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length - 1), fc.nat(255), fc.nat(20), async (at, put, cut) => {
        const damaged = Uint8Array.from([...bytes.subarray(0, at), put, ...bytes.subarray(at + cut)]);
        try {
          await decodeTrace(damaged, "t");
        } catch (error) {
          if (!isCoppiceError(error, "COPPICE_TRACE_FORMAT")) throw error;
        }
      }),
      { numRuns: 200 },
    );
  });

  test("is written whole and read back", async () => {
    const folder = await mkdtemp(join(tmpdir(), "traces-"));
    try {
      const { trace } = await recorded();
      const path = join(folder, "t.safetensors");
      await writeTrace(path, trace);
      expect(await readTrace(path)).toEqual(trace);
      await expectCode(() => writeTrace(path, trace), "COPPICE_IO_EXISTS");
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

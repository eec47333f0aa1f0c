import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type CollectedStatistics,
  decodeStatistics,
  encodeStatistics,
  scaleStatistics,
} from "@coppice/calibrate";
import { readStatistics, writeStatistics } from "@coppice/calibrate/node";
import { parseSafetensors, serializeSafetensors, type TensorBytes } from "@coppice/checkpoint";
import { isCoppiceError, statisticsFields } from "@coppice/core";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

const statistics: CollectedStatistics = {
  model: "abc",
  tokens: 1000,
  sources: [
    {
      name: 'a "name"\n__proto__',
      hash: "0f",
      sequences: 3,
      tokens: 600,
      kind: "answers",
      weight: 1,
      options: { chat: true, limit: 3, template: "x" },
    },
    { name: "b", hash: "1f", sequences: 1, tokens: 400, kind: "text", weight: 1, options: {} },
  ],
  layers: [1, 11].map((layer) => ({
    layer,
    tokens: 1000,
    count: Float64Array.of(1000, 0, 7),
    gate: Float64Array.of(0.1 + 0.2, 0, 1e-300),
    gate2: Float64Array.of(0.1, 0, 1e-300),
    norm: Float64Array.of(layer, 0, 5),
    gateNorm: Float64Array.of(1, 0, 5),
    gate2Norm: Float64Array.of(1, 0, 5),
    norm2: Float64Array.of(1, 0, 5),
    gateNorm2: Float64Array.of(1, 0, 5),
    gate2Norm2: Float64Array.of(1, 0, 1.7e308),
    probability: Float64Array.of(1 / 3, 2 ** 60 + 1, 0),
    topLogit: Float64Array.of(-1 / 3, 0, 5),
    routedLogit: Float64Array.of(-1.7e308, 0, 5),
    logitGram: Float64Array.of(1, -2, 3, -2, 4, 1 / 3, 3, 1 / 3, 5),
  })),
};

describe("the statistics file", () => {
  test("gives back every bit", async () => {
    const bytes = encodeStatistics(statistics);
    expect(await decodeStatistics(bytes, "s")).toEqual(statistics);
    expect(encodeStatistics(await decodeStatistics(bytes, "s"))).toEqual(bytes);
  });

  test("is a safetensors file that others can read", async () => {
    const { tensors, metadata } = await parseSafetensors(encodeStatistics(statistics), "s");
    expect([...tensors.keys()]).toEqual(
      [1, 11].flatMap((l) => statisticsFields.map((f) => `layers.${l}.${f}`)),
    );
    expect(tensors.get("layers.11.logitGram")).toMatchObject({ dtype: "F64", shape: [3, 3] });
    expect(tensors.get("layers.1.count")).toMatchObject({ dtype: "F64", shape: [3] });
    expect(metadata.get("format")).toBe("coppice.statistics");
    expect(metadata.get("model")).toBe("abc");
  });

  const damage: Record<string, (tensors: Map<string, TensorBytes>, metadata: Map<string, string>) => void> = {
    "another format": (_, metadata) => metadata.set("format", "pt"),
    "another version": (_, metadata) => metadata.set("version", "1"),
    "no model": (_, metadata) => metadata.delete("model"),
    "tokens that are no count": (_, metadata) => metadata.set("tokens", "-1"),
    "tokens that the sources do not have": (_, metadata) => metadata.set("tokens", "1001"),
    "sources that are no JSON": (_, metadata) => metadata.set("sources", "[{"),
    "sources that are no list": (_, metadata) => metadata.set("sources", "{}"),
    "a kind of data that is not known": (_, metadata) =>
      metadata.set("sources", (metadata.get("sources") as string).replace('"answers"', '"guesses"')),
    "a weight of nothing": (_, metadata) =>
      metadata.set("sources", (metadata.get("sources") as string).replace('"weight":1', '"weight":0')),
    "options that are no settings": (_, metadata) =>
      metadata.set("sources", (metadata.get("sources") as string).replace('"limit":3', '"limit":null')),
    "a Gram matrix that is not symmetric": (tensors) =>
      tensors.set("layers.1.logitGram", {
        ...float64(1, 2, 3, 2, 4, 5, 3, 6, 7),
        shape: [3, 3],
      }),
    "a Gram matrix without columns": (tensors) => tensors.set("layers.1.logitGram", float64(1, 2, 3)),
    "a source that is null": (_, metadata) => metadata.set("sources", "[null]"),
    "a missing field": (tensors) => tensors.delete("layers.1.norm"),
    "an unknown tensor": (tensors) => tensors.set("__proto__", tensors.get("layers.1.norm") as TensorBytes),
    "a field of another size": (tensors) => tensors.set("layers.1.norm", float64(1, 2)),
    "a field of another dtype": (tensors) =>
      tensors.set("layers.1.norm", { dtype: "F32", shape: [3], bytes: new Uint8Array(12) }),
    NaN: (tensors) => tensors.set("layers.1.norm", float64(1, Number.NaN, 1)),
    infinity: (tensors) => tensors.set("layers.1.norm", float64(1, 1, Number.POSITIVE_INFINITY)),
    "a negative sum": (tensors) => tensors.set("layers.11.gate", float64(1, -1, 1)),
    "a count that is no integer": (tensors) => tensors.set("layers.11.count", float64(1, 1.5, 1)),
    "a count beyond the tokens": (tensors) => tensors.set("layers.11.count", float64(1, 1001, 1)),
    "layers without experts": (tensors) => {
      for (const field of statisticsFields) tensors.set(`layers.1.${field}`, float64());
    },
  };
  test.each(Object.keys(damage))("is refused with %s", async (what) => {
    const { tensors, metadata } = await parseSafetensors(encodeStatistics(statistics), "s");
    const changed = { tensors: new Map(tensors), metadata: new Map(metadata) };
    damage[what]?.(changed.tensors, changed.metadata);
    const bytes = serializeSafetensors(changed.tensors, changed.metadata);
    await expect(decodeStatistics(bytes, "file.st")).rejects.toMatchObject({
      code: "COPPICE_STATS_FORMAT",
      message: expect.stringContaining("file.st"),
    });
  });

  test("keeps what scaling made of counts", async () => {
    const half = scaleStatistics(statistics, 1 / 3);
    expect(await decodeStatistics(encodeStatistics(half), "s")).toEqual(half);
    const damaged = { ...half, tokens: 1000 };
    await expect(decodeStatistics(encodeStatistics(damaged), "s")).rejects.toMatchObject({
      code: "COPPICE_STATS_FORMAT",
      message: expect.stringContaining("its sources have 333.3"),
    });
  });

  test("holds what was collected on demand, the same of all layers", async () => {
    const more: CollectedStatistics = {
      ...statistics,
      layers: statistics.layers.map((layer) => ({
        ...layer,
        change: Float64Array.of(1, 0, 0.5),
        peak: Float64Array.of(2, 0, 3),
        outputSum: Float64Array.of(1, -2, 0, 0, 5, 6),
      })),
    };
    expect(await decodeStatistics(encodeStatistics(more), "s")).toEqual(more);
    const { tensors, metadata } = await parseSafetensors(encodeStatistics(more), "s");
    expect(tensors.get("layers.11.outputSum")).toMatchObject({ shape: [3, 2] });
    for (const change of [
      (map: Map<string, TensorBytes>) => map.delete("layers.11.peak"),
      (map: Map<string, TensorBytes>) => map.set("layers.1.peak", float64(1, -1, 1)),
      (map: Map<string, TensorBytes>) => map.set("layers.1.outputSum", float64(1, 2, 3)),
    ]) {
      const changed = new Map(tensors);
      change(changed);
      await expect(decodeStatistics(serializeSafetensors(changed, metadata), "s")).rejects.toMatchObject({
        code: "COPPICE_STATS_FORMAT",
      });
    }
  });

  const sampled: CollectedStatistics = {
    ...statistics,
    layers: statistics.layers.map((layer) => ({
      ...layer,
      unitSquares: Float64Array.of(1, 2, 3, 4, 5, 6),
      outputGram: Float64Array.of(1, -2, 3, -2, 4, 0, 3, 0, 5),
      sample: {
        logits: Float32Array.of(1, 2, 3, -4, 5, 6),
        inputs: Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8),
        grams: Float32Array.of(1, 2, 3, 2, 4, 5, 3, 5, 6, 1, 0, 0, 0, 1, 0, 0, 0, 1),
        units: Float32Array.from({ length: 12 }, (_, i) => i / 7),
      },
    })),
    sample: { limit: 2, priorities: Float64Array.of(0.25, 1 / 3) },
  };

  test("holds a sample, as float32", async () => {
    const bytes = encodeStatistics(sampled);
    expect(await decodeStatistics(bytes, "s")).toEqual(sampled);
    const { tensors, metadata } = await parseSafetensors(bytes, "s");
    expect(metadata.get("version")).toBe("3");
    expect(metadata.get("sampleLimit")).toBe("2");
    expect(tensors.get("sample.priorities")).toMatchObject({ dtype: "F64", shape: [2] });
    for (const [field, shape] of [
      ["logits", [2, 3]],
      ["inputs", [2, 4]],
      ["grams", [2, 3, 3]],
      ["units", [2, 3, 2]],
    ] as const) {
      expect(tensors.get(`layers.11.sample.${field}`)).toMatchObject({ dtype: "F32", shape });
    }
  });

  const sampleDamage: Record<string, (typeof damage)[string]> = {
    "no limit": (_, metadata) => metadata.delete("sampleLimit"),
    "no priorities": (tensors) => tensors.delete("sample.priorities"),
    "a limit of nothing": (_, metadata) => metadata.set("sampleLimit", "0"),
    "fewer tokens than it must have": (_, metadata) => metadata.set("sampleLimit", "3"),
    "a limit beyond all numbers": (_, metadata) => metadata.set("sampleLimit", "1e999"),
    "priorities that descend": (tensors) => tensors.set("sample.priorities", float64(0.5, 0.25)),
    "a priority of zero": (tensors) => tensors.set("sample.priorities", float64(0, 0.25)),
    "a priority that is NaN": (tensors) => tensors.set("sample.priorities", float64(0.25, Number.NaN)),
    "no logits": (tensors) => tensors.delete("layers.11.sample.logits"),
    "a field that one layer lacks": (tensors) => tensors.delete("layers.11.sample.inputs"),
    "inputs of another dtype": (tensors) =>
      tensors.set("layers.1.sample.inputs", { ...float64(1, 2, 3, 4, 5, 6, 7, 8), shape: [2, 4] }),
    "inputs of another number of tokens": (tensors) =>
      tensors.set("layers.1.sample.inputs", float32([1, 4], 1, 2, 3, 4)),
    "inputs without columns": (tensors) => tensors.set("layers.1.sample.inputs", float32([2, 0])),
    "a Gram matrix that is not symmetric": (tensors) =>
      tensors.set("layers.1.sample.grams", float32([2, 3, 3], ...Array.from({ length: 18 }, (_, i) => i))),
    "units of other experts": (tensors) =>
      tensors.set("layers.1.sample.units", float32([2, 2, 3], ...new Array<number>(12).fill(1))),
    "units of another width than the sums": (tensors) =>
      tensors.set("layers.1.sample.units", float32([2, 3, 1], 1, 2, 3, 4, 5, 6)),
    "a value that is infinite": (tensors) =>
      tensors.set("layers.1.sample.logits", float32([2, 3], 1, 2, 3, 4, 5, Number.POSITIVE_INFINITY)),
    "an output Gram matrix that is not symmetric": (tensors) =>
      tensors.set("layers.1.outputGram", { ...float64(1, 2, 3, 4, 5, 6, 7, 8, 9), shape: [3, 3] }),
  };
  test.each(Object.keys(sampleDamage))("is refused with a sample with %s", async (what) => {
    const { tensors, metadata } = await parseSafetensors(encodeStatistics(sampled), "s");
    const changed = { tensors: new Map(tensors), metadata: new Map(metadata) };
    sampleDamage[what]?.(changed.tensors, changed.metadata);
    const bytes = serializeSafetensors(changed.tensors, changed.metadata);
    await expect(decodeStatistics(bytes, "file.st")).rejects.toMatchObject({
      code: "COPPICE_STATS_FORMAT",
    });
  });

  test("is read when it has version 2, which is 3 without what came since", async () => {
    const { tensors, metadata } = await parseSafetensors(encodeStatistics(statistics), "s");
    const old = serializeSafetensors(tensors, new Map([...metadata, ["version", "2"]]));
    expect(await decodeStatistics(old, "s")).toEqual(statistics);
  });

  test("is refused when cut short at any byte, with one code", async () => {
    const bytes = encodeStatistics(statistics);
    for (let length = 0; length < bytes.length; length += 13) {
      const error = await decodeStatistics(bytes.slice(0, length), "s").catch((caught: unknown) => caught);
      expect(isCoppiceError(error, "COPPICE_STATS_FORMAT")).toBe(true);
    }
  });
});

describe("statistics on disk", () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "statistics-"));
  });
  afterEach(() => rm(folder, { recursive: true }));

  test("are written whole, read back, and not overwritten unasked", async () => {
    const path = join(folder, "s.safetensors");
    await writeStatistics(path, statistics);
    expect(await readStatistics(path)).toEqual(statistics);
    const before = await readFile(path);
    await expect(writeStatistics(path, { ...statistics, model: "other" })).rejects.toMatchObject({
      code: "COPPICE_IO_EXISTS",
    });
    expect(await readFile(path)).toEqual(before);
    await writeStatistics(path, { ...statistics, model: "other" }, { overwrite: true });
    expect((await readStatistics(path)).model).toBe("other");
    expect(await readdir(folder)).toEqual(["s.safetensors"]);
  });

  test("fail with a code where the system refuses", async () => {
    await expect(writeStatistics(join(folder, "none", "s"), statistics)).rejects.toMatchObject({
      code: "COPPICE_IO_WRITE",
    });
    await expect(readStatistics(join(folder, "none"))).rejects.toMatchObject({ code: "COPPICE_IO_READ" });
    await writeFile(join(folder, "text"), "not a statistics file");
    await expect(readStatistics(join(folder, "text"))).rejects.toMatchObject({
      code: "COPPICE_STATS_FORMAT",
    });
    const signal = AbortSignal.abort();
    await expect(writeStatistics(join(folder, "s"), statistics, { signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
    await expect(readStatistics(join(folder, "text"), { signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
    expect(await readdir(folder)).toEqual(["text"]);
  });
});

function float64(...values: number[]): TensorBytes {
  return { dtype: "F64", shape: [values.length], bytes: new Uint8Array(Float64Array.from(values).buffer) };
}

function float32(shape: number[], ...values: number[]): TensorBytes {
  return { dtype: "F32", shape, bytes: new Uint8Array(Float32Array.from(values).buffer) };
}

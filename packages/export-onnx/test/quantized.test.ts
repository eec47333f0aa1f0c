import { loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { openFolder, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import type { TensorRef } from "@coppice/core";
import { exportOnnx, exportTargets } from "@coppice/export-onnx";
import { decodeModel, type GraphInitializer } from "@coppice/onnx";
import { fixturePath } from "@coppice/plugin-kit/node";
import { quantizeCheckpoint, rtn } from "@coppice/quantizers";
import { describe, expect, test } from "vitest";
import { packedForm } from "../src/matrix-contents.js";
import { ExportedSession, largestDifference, valuesOf } from "./exported-session.js";
import { quantized, referenceLogits } from "./fixture-models.js";

const ids = Int32Array.from([5, 3, 8, 1, 2, 9, 4, 4, 7, 1, 3, 6]);

function cosine(a: Float32Array, b: Float32Array): number {
  const sum = (x: Float32Array, y: Float32Array) =>
    x.reduce((s, value, i) => s + value * (y[i] as number), 0);
  return sum(a, b) / Math.sqrt(sum(a, a) * sum(b, b));
}

const forms = ([2, 4, 8] as const).flatMap((bits) => [
  { bits, symmetric: true },
  { bits, symmetric: false },
]);

describe.each(["mixtral", "qwen3_moe"] as const)("a quantized %s", (family) => {
  test.each(forms)("of $bits bits, symmetric $symmetric", async ({ bits, symmetric }) => {
    await using loaded = await quantized(family, bits, symmetric);
    const expected = await referenceLogits(loaded, ids);
    const vocab = loaded.model.vocabSize;
    for (const target of exportTargets) {
      const output = memoryTarget();
      const summary = await exportOnnx(loaded, output, { target });
      expect(summary.type).toBe(`q${bits}`);
      await using session = await ExportedSession.open(output);
      const whole = valuesOf((await session.run(ids)).logits);
      // Rows are int8 where ONNX Runtime has no fast way for others.
      if (target === "cpu" && bits !== 4) expect(cosine(whole, expected)).toBeGreaterThan(0.999);
      else expect(largestDifference(whole, expected)).toBeLessThan(2e-4);
      session.reset();
      await session.run(ids.subarray(0, -1), 1);
      const last = valuesOf((await session.run(ids.subarray(-1), 1)).logits);
      expect(cosine(last, expected.subarray(-vocab))).toBeGreaterThan(0.999);
    }
  });
});

test("codes, zero points and scales lie in the file as they are in the checkpoint", async () => {
  await using loaded = await quantized("qwen3_moe", 4, false);
  const output = memoryTarget();
  await exportOnnx(loaded, output, { target: "cpu" });
  const graph = decodeModel(output.files.get("onnx/model_q4.onnx") as Uint8Array);
  const stored = (name: string) => {
    const found = graph.initializers.find((one) => one.name === name) as GraphInitializer;
    if (!("external" in found)) throw new Error(`${name} lies in the graph`);
    const { file, offset, length } = found.external;
    return output.files.get(`onnx/${file}`)?.subarray(offset, offset + length);
  };
  const expectSame = async (name: string, ...refs: TensorRef[]) => {
    const matrices = await Promise.all(refs.map((ref) => loaded.weights.readQuantized?.(ref)));
    for (const part of ["codes", "zeroPoints"] as const) {
      const bytes = matrices.flatMap((matrix) => Array.from(matrix?.[part] ?? []));
      expect(Buffer.from(bytes).equals(stored(`${name}.${part}`) as Uint8Array)).toBe(true);
    }
  };
  const [layer] = loaded.model.layers;
  const { attention, feedForward } = layer as NonNullable<typeof layer>;
  if (feedForward.kind !== "moe" || attention.kind !== "gqa")
    throw new Error("the fixture has another shape");
  await expectSame("layers.0.experts.1.down", feedForward.experts[1]?.down as TensorRef);
  await expectSame("layers.0.qkv", attention.query.weight, attention.key.weight, attention.value.weight);
  // A tied matrix is stored once, whatever reads it.
  expect(loaded.model.tied).toBe(true);
  await expectSame("embedding", loaded.model.embedding);
  expect(stored("head.codes")?.byteOffset).toBe(stored("embedding.codes")?.byteOffset);
});

test("2 bits in large groups multiply int8 rows in groups of 32, with the same codes", async () => {
  const [source, target] = [memoryTarget(), memoryTarget()];
  const sizes = { hiddenSize: 128, vocabSize: 32, heads: 2, kvHeads: 1, expertWidth: 128, layers: 1 };
  // All experts run: rounding could have a token choose another one.
  const shape = { ...sizes, family: "qwen3_moe", tied: true, experts: 2, topK: 2, dtype: "F32" } as const;
  await writeSyntheticCheckpoint(source, shape);
  await using whole = await loadModel(memoryFolder(source.files));
  const format = { bits: 2, groupSize: 128, symmetric: false } as const;
  await quantizeCheckpoint(whole, target, {
    quantizer: await rtn.create({}, undefined),
    format: () => format,
  });
  await using loaded = await loadModel(memoryFolder(target.files));
  const output = memoryTarget();
  await exportOnnx(loaded, output, { target: "cpu" });
  const { nodes, initializers } = decodeModel(output.files.get("onnx/model_q2.onnx") as Uint8Array);
  const groupsOf = (operator: string) =>
    new Set(nodes.filter((node) => node.operator === operator).map((node) => node.attributes["block_size"]));
  // The embedding is the head too: its rows are looked up in groups as they are.
  expect(groupsOf("MatMulNBits")).toEqual(new Set([32]));
  expect(groupsOf("GatherBlockQuantized")).toEqual(new Set([128]));
  const shapeOf = (name: string) => initializers.find((one) => one.name === name)?.shape;
  expect([shapeOf("head.scales"), shapeOf("embedding.scales")]).toEqual([
    [32, 4],
    [32, 1],
  ]);
  await using session = await ExportedSession.open(output);
  const logits = valuesOf((await session.run(ids)).logits);
  expect(cosine(logits, await referenceLogits(loaded, ids))).toBeGreaterThan(0.999);
});

test.each([
  { groupSize: 64, blockSize: 64, accuracyLevel: 0 },
  { groupSize: 128, blockSize: 128, accuracyLevel: 4 },
  { groupSize: 256, blockSize: 128, accuracyLevel: 4 },
])("4 bits in groups of $groupSize multiply rows at accuracy level $accuracyLevel", async (form) => {
  const [source, target] = [memoryTarget(), memoryTarget()];
  const sizes = { hiddenSize: 256, vocabSize: 32, heads: 4, kvHeads: 2, expertWidth: 256, layers: 1 };
  await writeSyntheticCheckpoint(source, { ...sizes, family: "mixtral", experts: 2, topK: 2 });
  await using whole = await loadModel(memoryFolder(source.files));
  await quantizeCheckpoint(whole, target, {
    quantizer: await rtn.create({ clip: false }, undefined),
    format: () => ({ bits: 4, groupSize: form.groupSize, symmetric: true }),
  });
  await using loaded = await loadModel(memoryFolder(target.files));
  for (const target of exportTargets) {
    const output = memoryTarget();
    await exportOnnx(loaded, output, { target });
    const { nodes } = decodeModel(output.files.get("onnx/model_q4.onnx") as Uint8Array);
    const found = new Set(
      nodes
        .filter(({ operator }) => operator === "MatMulNBits")
        .map(({ attributes }) => `${attributes["block_size"]} ${attributes["accuracy_level"]}`),
    );
    const expected = target === "cpu" ? [form.blockSize, form.accuracyLevel] : [form.groupSize, 0];
    expect(found).toEqual(new Set([expected.join(" ")]));
  }
});

test("parts of a stack that are stored differently run one by one", async () => {
  const target = memoryTarget();
  await using whole = await loadModel(await openFolder(fixturePath("mixtral")));
  await quantizeCheckpoint(whole, target, {
    quantizer: await rtn.create({}, undefined),
    format: ({ role }) => (role === "key" ? { bits: 4, groupSize: 16, symmetric: true } : undefined),
  });
  await using loaded = await loadModel(memoryFolder(target.files));
  const output = memoryTarget();
  const summary = await exportOnnx(loaded, output, { target: "cpu" });
  expect(summary.type).toBe("fp32");
  await using session = await ExportedSession.open(output);
  const { logits } = await session.run(ids);
  expect(largestDifference(valuesOf(logits), await referenceLogits(loaded, ids))).toBeLessThan(2e-4);
});

test("bits and groups that are not executed are refused with those that are", async () => {
  await using loaded = await quantized("mixtral", 4, true);
  const { embedding } = loaded.model;
  const { scales } = embedding;
  if (scales?.format !== "packed") throw new Error("the embedding is not packed");
  const refused = (changes: object, message: RegExp) =>
    expect(() => packedForm({ ...embedding, scales: { ...scales, ...changes } })).toThrow(message);
  refused({ columns: 8 }, /embed.* has 8 columns per group; ONNX Runtime executes 16, 32, 64, 128, 256/);
  refused({ bits: 3 }, /embed.* has 3 bits per weight; ONNX Runtime executes 2, 4, 8/);
});

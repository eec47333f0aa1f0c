import { loadModel, memoryTarget } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { exportOnnx } from "@coppice/export-onnx";
import { decodeModel } from "@coppice/onnx";
import { fixtureNames, fixturePath, loadFixture } from "@coppice/plugin-kit/node";
import { Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { ExportedSession, largestDifference, valuesOf } from "./exported-session.js";

const tolerance = 2e-4;

describe.each(fixtureNames)("%s", (name) => {
  test.each(["cpu", "webgpu"] as const)("the graph for %s gives the golden logits", async (target) => {
    await using loaded = await loadModel(await openFolder(fixturePath(name)));
    const { golden, model } = await loadFixture(name);
    const output = memoryTarget();
    const { contextLength } = await exportOnnx(loaded, output, { target });
    await using session = await ExportedSession.open(output);
    const vocab = model.vocabSize;
    let offset = 0;
    for (const whole of golden.sequences) {
      const sequence = whole.subarray(0, contextLength);
      const expected = golden.logits.subarray(offset, offset + sequence.length * vocab);
      offset += whole.length * vocab;
      session.reset();
      expect(largestDifference(valuesOf((await session.run(sequence)).logits), expected)).toBeLessThan(
        tolerance,
      );
      // Again in pieces: a prompt, of which only the last logits are wanted, and then token by token.
      session.reset();
      const prompt = sequence.length >> 1;
      for (let at = 0; at < sequence.length; ) {
        const end = at === 0 ? prompt : at + 1;
        const { logits } = await session.run(sequence.subarray(at, end), 1);
        expect(logits?.dims).toEqual([1, 1, vocab]);
        const row = expected.subarray((end - 1) * vocab, end * vocab);
        expect(largestDifference(valuesOf(logits), row)).toBeLessThan(tolerance);
        at = end;
      }
    }
  });
});

test.each(fixtureNames)("single tokens of %s read a past with room to spare where it lies", async (name) => {
  await using loaded = await loadModel(await openFolder(fixturePath(name)));
  const { golden, model } = await loadFixture(name);
  const output = memoryTarget();
  const { contextLength } = await exportOnnx(loaded, output, { target: "cpu" });
  const config = JSON.parse(new TextDecoder().decode(output.files.get("config.json")));
  expect(config.coppice_export.spares_present).toBe(true);
  await using exported = await ExportedSession.open(output);
  const { session } = exported;
  const [whole = new Int32Array(0)] = golden.sequences;
  const sequence = whole.subarray(0, contextLength);
  const prompt = sequence.length >> 1;
  const outputs = await exported.run(sequence.subarray(0, prompt));
  const int64 = (values: readonly bigint[], dims: readonly number[]) =>
    new Tensor("int64", BigInt64Array.from(values), dims);
  /** What no token may see. */
  const nothing = 7;
  const places = sequence.length + 3;
  const names = session.inputNames.filter((input) => input.startsWith("past_key_values."));
  const past = Object.fromEntries(
    names.map((input) => {
      const { data, dims } = outputs[input.replace("past_key_values", "present")] as Tensor;
      const [, heads, , size] = dims as [number, number, number, number];
      const values = new Float32Array(heads * places * size).fill(nothing);
      for (let head = 0; head < heads; head++) {
        const held = (data as Float32Array).subarray(head * prompt * size, (head + 1) * prompt * size);
        values.set(held, head * places * size);
      }
      return [input, new Tensor("float32", values, [1, heads, places, size])];
    }),
  );
  for (let at = prompt; at < sequence.length; at++) {
    const outputs = await session.run({
      ...past,
      input_ids: int64([BigInt(sequence[at] as number)], [1, 1]),
      attention_mask: int64(new Array<bigint>(at + 1).fill(1n), [1, at + 1]),
      num_logits_to_keep: int64([-1n], []),
    });
    const row = golden.logits.subarray(at * model.vocabSize, (at + 1) * model.vocabSize);
    expect(largestDifference(valuesOf(outputs["logits"]), row)).toBeLessThan(tolerance);
    const newest = valuesOf(outputs["newest_key_values"]);
    let from = 0;
    for (const input of names) {
      const { data, dims } = past[input] as Tensor;
      const [, heads, , size] = dims as [number, number, number, number];
      const own = newest.subarray(from, from + heads * size);
      from += heads * size;
      const present = outputs[input.replace("past_key_values", "present")];
      expect(present?.dims).toEqual([1, heads, 1, size]);
      expect(valuesOf(present)).toEqual(own);
      for (let head = 0; head < heads; head++) {
        (data as Float32Array).set(own.subarray(head * size, (head + 1) * size), (head * places + at) * size);
      }
    }
  }
});

/** Operators that ONNX Runtime 1.30 gets right on WebGPU, measured on a graphics card, and those that only make shapes. */
const rightOnWebgpu = new Set(
  (
    "Add Cast Clip Concat Div Expand Gather GatherBlockQuantized GatherElements Gemm Greater GroupQueryAttention Identity " +
    "MatMulNBits Mul Neg ReduceSum Reshape ScatterElements Shape Sigmoid SimplifiedLayerNormalization " +
    "SkipSimplifiedLayerNormalization Slice Softmax Split Squeeze Sub TopK Unsqueeze Where"
  ).split(" "),
);
/** Only of constants: computed once, on the CPU, when the graph is loaded. */
const ofConstants = new Set(["Range", "Cos", "Sin"]);

test.each(["mixtral", "qwen3_moe", "olmoe", "qwen2_moe", "granitemoe", "gpt_oss"] as const)(
  "the graph of %s for webgpu has only operators that are right there",
  async (name) => {
    await using loaded = await loadModel(await openFolder(fixturePath(name)));
    const output = memoryTarget();
    await exportOnnx(loaded, output, { target: "webgpu" });
    const graph = decodeModel(output.files.get("onnx/model.onnx") as Uint8Array);
    const constant = new Set(graph.initializers.map((one) => one.name));
    for (const { operator, inputs, outputs } of graph.nodes) {
      const known = inputs.every((input) => constant.has(input));
      if (known) for (const one of outputs) constant.add(one);
      if (!(known && ofConstants.has(operator))) expect([...rightOnWebgpu]).toContain(operator);
      // Sizes of parts must not depend on values.
      if (operator === "Split") expect(inputs.slice(1).every((size) => constant.has(size))).toBe(true);
    }
  },
);

test("weights are spread over files below a limit, as config.json says", async () => {
  await using loaded = await loadModel(await openFolder(fixturePath("mixtral")));
  const output = memoryTarget();
  const limit = 100_000;
  await exportOnnx(loaded, output, { target: "cpu", maxFileBytes: limit });
  const data = [...output.files].filter(([name]) => name.includes(".onnx_data"));
  expect(data.length).toBeGreaterThan(2);
  expect(Math.max(...data.map(([, { length }]) => length))).toBeLessThanOrEqual(limit);
  const config = JSON.parse(new TextDecoder().decode(output.files.get("config.json")));
  expect(config["transformers.js_config"].use_external_data_format).toEqual({ "model.onnx": data.length });
  await using session = await ExportedSession.open(output);
  const { golden, model } = await loadFixture("mixtral");
  const [sequence = new Int32Array(0)] = golden.sequences;
  const { logits } = await session.run(sequence);
  const expected = golden.logits.subarray(0, sequence.length * model.vocabSize);
  expect(largestDifference(valuesOf(logits), expected)).toBeLessThan(tolerance);
});

test("chosen experts are those of the reference implementation, on request", async () => {
  await using loaded = await loadModel(await openFolder(fixturePath("mixtral")));
  const { golden } = await loadFixture("mixtral");
  const output = memoryTarget();
  await exportOnnx(loaded, output, { target: "cpu", expertOutputs: true });
  await using session = await ExportedSession.open(output);
  const [sequence = new Int32Array(0)] = golden.sequences;
  const outputs = await session.run(sequence, 1);
  expect(golden.routers.length).toBeGreaterThan(0);
  for (const { layer, experts } of golden.routers) {
    const chosen = outputs[`experts.${layer}`];
    const topK = chosen?.dims[2] as number;
    expect(chosen?.dims).toEqual([1, sequence.length, 2]);
    const rows = (values: ArrayLike<number>) =>
      Array.from(sequence, (_, t) =>
        Array.from(values)
          .slice(t * topK, (t + 1) * topK)
          .sort(),
      );
    expect(rows(chosen?.data as Int32Array)).toEqual(rows(experts));
  }
});

test("buffers of the final size, given for past and present, are extended in place", async () => {
  await using loaded = await loadModel(await openFolder(fixturePath("mixtral")));
  const { golden, model } = await loadFixture("mixtral");
  const output = memoryTarget();
  await exportOnnx(loaded, output, { target: "cpu" });
  await using exported = await ExportedSession.open(output);
  const { session } = exported;
  const [sequence = new Int32Array(0)] = golden.sequences;
  const int64 = (values: Iterable<bigint>, dims: readonly number[]) =>
    new Tensor("int64", BigInt64Array.from(values), dims);
  const past: Record<string, Tensor> = {};
  const present: Record<string, Tensor | null> = { logits: null };
  for (const input of session.inputMetadata) {
    if (!input.name.startsWith("past_key_values") || !input.isTensor) continue;
    const dims = [1, input.shape[1] as number, sequence.length + 5, input.shape[3] as number];
    const size = dims.reduce((product, dim) => product * dim);
    past[input.name] = new Tensor("float32", new Float32Array(size), dims);
    present[input.name.replace("past_key_values", "present")] = past[input.name] as Tensor;
  }
  for (let at = 0; at < sequence.length; at++) {
    const feeds = {
      ...past,
      input_ids: int64([BigInt(sequence[at] as number)], [1, 1]),
      attention_mask: int64(new Array<bigint>(at + 1).fill(1n), [1, at + 1]),
      num_logits_to_keep: int64([1n], []),
    };
    const { logits } = await session.run(feeds, present);
    const row = golden.logits.subarray(at * model.vocabSize, (at + 1) * model.vocabSize);
    expect(largestDifference(valuesOf(logits), row)).toBeLessThan(tolerance);
  }
});

test("what is new of keys and values comes alone as well, with padding and with room to spare", async () => {
  await using loaded = await loadModel(await openFolder(fixturePath("qwen3_moe")));
  const output = memoryTarget();
  await exportOnnx(loaded, output, { target: "cpu" });
  await using exported = await ExportedSession.open(output);
  const { session } = exported;
  const int64 = (values: readonly number[], dims: readonly number[]) =>
    new Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  const [batch, room] = [2, 9];
  const shapes = session.inputMetadata.flatMap((input) =>
    input.name.startsWith("past_key_values") && input.isTensor
      ? [{ name: input.name, heads: input.shape[1] as number, size: input.shape[3] as number }]
      : [],
  );
  let past: Record<string, Tensor> = Object.fromEntries(
    shapes.map(({ name, heads, size }) => {
      const dims = [batch, heads, room, size];
      return [name, new Tensor("float32", new Float32Array(batch * heads * room * size), dims)];
    }),
  );
  let total = 0;
  for (const tokens of [[3, 1, 4, 1], [5], [9]]) {
    total += tokens.length;
    // The second text begins two tokens later.
    const mask = Array.from({ length: batch * total }, (_, i) => (i === total || i === total + 1 ? 0 : 1));
    const outputs = await session.run({
      ...past,
      input_ids: int64([...tokens, ...tokens], [batch, tokens.length]),
      attention_mask: int64(mask, [batch, total]),
      num_logits_to_keep: int64([1], []),
    });
    past = Object.fromEntries(
      shapes.map(({ name }) => [name, outputs[name.replace("past_key_values", "present")] as Tensor]),
    );
    const expected: number[] = [];
    for (let b = 0; b < batch; b++) {
      for (const { name, heads, size } of shapes) {
        const values = valuesOf(past[name]);
        for (let head = 0; head < heads; head++) {
          const first = (b * heads + head) * room * size;
          expected.push(...values.subarray(first + (total - tokens.length) * size, first + total * size));
        }
      }
    }
    expect(expected.some((value) => value !== 0)).toBe(true);
    const found = outputs["newest_key_values"] as Tensor;
    expect(Array.from(valuesOf(found))).toEqual(expected);
  }
});

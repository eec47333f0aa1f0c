import { loadModel, memoryTarget } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { exportOnnx } from "@coppice/export-onnx";
import { decodeModel } from "@coppice/onnx";
import { fixtureNames, fixturePath, loadFixture } from "@coppice/plugin-kit/node";
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

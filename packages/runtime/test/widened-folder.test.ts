import { loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import type { QuantizedBits } from "@coppice/core";
import { type ExportTarget, exportOnnx } from "@coppice/export-onnx";
import { decodeModel } from "@coppice/onnx";
import { type FixtureName, fixturePath } from "@coppice/plugin-kit/node";
import { quantizeCheckpoint, rtn, uniformFormat } from "@coppice/quantizers";
import { type ExportedFolder, openExportedModel, widenedFolder } from "@coppice/runtime";
import * as node from "onnxruntime-node";
import { describe, expect, it } from "vitest";

/** A fixture with all matrices quantized, embedding and head included, as an exported folder in memory. */
async function exported(
  name: FixtureName,
  bits: QuantizedBits,
  symmetric: boolean,
  forTarget: ExportTarget = "wasm",
): Promise<ExportedFolder> {
  const [small, target] = [memoryTarget(), memoryTarget()];
  await using loaded = await loadModel(await openFolder(fixturePath(name)));
  const format = uniformFormat({ bits, groupSize: 16, symmetric, head: bits, embedding: bits });
  await quantizeCheckpoint(loaded, small, { quantizer: await rtn.create({}, undefined), format });
  await using quantized = await loadModel(memoryFolder(small.files));
  await exportOnnx(quantized, target, { target: forTarget, expertOutputs: true });
  const bytesOf = (file: string) => target.files.get(file) as Uint8Array;
  return {
    label: name,
    text: async (file) => (target.files.has(file) ? new TextDecoder().decode(bytesOf(file)) : undefined),
    list: async () => undefined,
    graph: async (graph, data) => ({
      graph: bytesOf(`onnx/${graph}`),
      externalData: data.map((path) => ({ path, data: bytesOf(`onnx/${path}`) })),
    }),
  };
}

/** Endings of graphs by bits. */
const suffixes = { 2: "q2", 4: "q4", 8: "quantized" } as const;
const prompt = Int32Array.of(5, 3, 8, 1, 2);

async function written(folder: ExportedFolder, inPlace = false) {
  const session = { logSeverityLevel: 4 } as const;
  await using model = await openExportedModel(folder, { runtime: node, inPlace, session });
  const pieces: { token: number | undefined; experts: string[] | undefined }[] = [];
  for await (const { token, experts } of model.stream(prompt, { maxTokens: 24, experts: true })) {
    pieces.push({ token, experts: experts?.map(({ experts }) => experts.join()) });
  }
  return pieces;
}

describe("a widened folder", () => {
  it.each([
    ["mixtral", 4, false],
    ["mixtral", 2, true],
    ["qwen3_moe", 8, false],
    // With biases.
    ["qwen2_moe", 4, true],
  ] as const)(
    "writes with %s of %i bits, symmetric: %s, what ONNX Runtime's own kernels do",
    async (family, bits, symmetric) => {
      const folder = await exported(family, bits, symmetric);
      const widened = widenedFolder(folder);
      const expected = await written(folder);
      expect(expected.length).toBeGreaterThan(20);
      expect(await written(widened)).toEqual(expected);

      const name = `model_${suffixes[bits]}.onnx`;
      const { graph, externalData } = await widened.graph(name, [`${name}_data`]);
      const { nodes, initializers } = decodeModel(graph as Uint8Array);
      expect(nodes.map(({ operator }) => operator)).not.toContain("MatMulNBits");
      const used = new Set(nodes.flatMap(({ inputs }) => inputs));
      expect(initializers.filter(({ name }) => !used.has(name))).toEqual([]);
      const files = new Set(externalData.map(({ path }) => path));
      for (const one of initializers) if ("external" in one) expect(files).toContain(one.external.file);
    },
  );

  it("keeps the branches of a graph for another target", async () => {
    const folder = await exported("mixtral", 4, false, "cpu");
    expect(await written(widenedFolder(folder), true)).toEqual(await written(folder));
  });

  it("refuses graphs of others, graphs that are paths, and files that end early", async () => {
    const folder = await exported("mixtral", 4, false);
    const code = "COPPICE_BACKEND_UNSUPPORTED";
    const graphs = ["model_q4.onnx", ["model_q4.onnx_data"]] as const;
    const config = JSON.stringify({ vocab_size: 96, max_position_embeddings: 64 });
    const foreign = widenedFolder({ ...folder, text: async () => config });
    await expect(foreign.graph(...graphs)).rejects.toMatchObject({ code });
    const path = widenedFolder({ ...folder, graph: async () => ({ graph: "model.onnx", externalData: [] }) });
    await expect(path.graph(...graphs)).rejects.toMatchObject({ code });
    const { graph, externalData } = await folder.graph(...graphs);
    const short = externalData.map(({ path, data }) => ({ path, data: data.subarray(0, data.length >> 1) }));
    const ended = widenedFolder({ ...folder, graph: async () => ({ graph, externalData: short }) });
    await expect(ended.graph(...graphs)).rejects.toMatchObject({ code: "COPPICE_FORMAT_TRUNCATED" });
  });
});

import { readFile } from "node:fs/promises";
import { applyPlan, type LoadedCheckpoint, loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import {
  createPlan,
  dequantizeMatrix,
  isCoppiceError,
  modelSize,
  moeLayers,
  type TensorRef,
} from "@coppice/core";
import {
  type FormatOf,
  type ModelMatrix,
  modelMatrices,
  type QuantizeCheckpointOptions,
  quantizeCheckpoint,
  rtn,
  type UniformFormat,
  uniformFormat,
} from "@coppice/quantizers";
import { describe, expect, it } from "vitest";

const fixtures = new URL("../../plugin-kit/fixtures/", import.meta.url).pathname;
const open = async (family: string) => loadModel(await openFolder(`${fixtures}${family}`));

async function quantized(
  checkpoint: LoadedCheckpoint,
  format: FormatOf,
  options: Partial<QuantizeCheckpointOptions> = {},
) {
  const target = memoryTarget();
  const quantizer = await rtn.create({}, undefined);
  const summary = await quantizeCheckpoint(checkpoint, target, { quantizer, format, ...options });
  return { summary, files: target.files, output: await loadModel(memoryFolder(target.files)) };
}

describe("quantizeCheckpoint", () => {
  for (const family of ["mixtral", "qwen3_moe"]) {
    it(`writes a ${family} that is read as what the quantizer chose`, async () => {
      await using checkpoint = await open(family);
      const format = uniformFormat({ bits: 4, groupSize: 16, symmetric: false, head: 8, embedding: 8 });
      const { summary, output, files } = await quantized(checkpoint, format);
      const before = modelMatrices(checkpoint.model);
      const after = modelMatrices(output.model);
      expect(summary.matrices).toHaveLength(before.length);
      const quantizer = await rtn.create({}, undefined);
      for (const [i, matrix] of before.entries()) {
        const report = summary.matrices[i]!;
        const weights = await checkpoint.weights.read(matrix.weight);
        const [rows, columns] = matrix.weight.shape as [number, number];
        const own = await quantizer.quantize({
          name: "",
          weights,
          rows,
          columns,
          format: format(matrix)!,
          scales: matrix.weight.dtype === "BF16" ? "BF16" : "F16",
        });
        const ref = after[i]!.weight;
        expect(await output.weights.readQuantized?.(ref)).toEqual(own.matrix);
        expect(await output.weights.read(ref)).toEqual(dequantizeMatrix(own.matrix));
        expect(report.error).toBeGreaterThan(0);
        expect(report.error).toBeLessThan(report.format.bits === 8 ? 0.01 : 0.15);
      }
      for (const [name, ref] of checkpoint.tensors) {
        const kept = output.tensors.get(name);
        if (kept) expect(await output.weights.read(kept)).toEqual(await checkpoint.weights.read(ref));
      }
      const config = JSON.parse(new TextDecoder().decode(files.get("config.json"))) as Record<string, never>;
      const { quantization_config: stated, ...rest } = config as Record<string, unknown>;
      expect(rest).toEqual(JSON.parse(await readFile(`${fixtures}${family}/config.json`, "utf8")));
      const { config_groups, ignore } = stated as {
        config_groups: Record<string, { targets: string[] }>;
        ignore: string[];
      };
      expect(config_groups.group_0!.targets).toEqual(["Linear"]);
      expect(config_groups.group_1!.targets).toEqual(["model.embed_tokens", "lm_head"]);
      expect(ignore).toHaveLength(checkpoint.model.layers.length);
      expect(ignore.every((module) => module.endsWith(".gate"))).toBe(true);
    });
  }

  it("gives the head 8 bits unless told otherwise, also one that is tied to the embedding", () => {
    const weight = {} as TensorRef;
    const bits = (ends: Pick<UniformFormat, "head" | "embedding">) => {
      const format = uniformFormat({ bits: 4, groupSize: 16, symmetric: true, ...ends });
      const of = (matrix: Pick<ModelMatrix, "role" | "tied">) => format({ weight, ...matrix })?.bits;
      return [of({ role: "up" }), of({ role: "head" }), of({ role: "embedding" })].concat(
        of({ role: "embedding", tied: true }),
      );
    };
    expect(bits({})).toEqual([4, 8, undefined, 8]);
    expect(bits({ head: "keep" })).toEqual([4, undefined, undefined, undefined]);
    expect(bits({ head: 4 })).toEqual([4, 4, undefined, 4]);
    expect(bits({ embedding: 2 })).toEqual([4, 8, 2, 2]);
    expect(bits({ head: 4, embedding: 4 })).toEqual([4, 4, 4, 4]);
    expect(() => bits({ head: "keep", embedding: 4 })).toThrow("embedding and head in one");
    expect(() => bits({ head: 8, embedding: 4 })).toThrow("cannot have 4 bits and 8 bits");
  });

  it("gives experts of one layer their own bits", async () => {
    await using checkpoint = await open("mixtral");
    const format: FormatOf = ({ expert, role }) =>
      expert === undefined
        ? undefined
        : { bits: expert % 2 === 0 ? 2 : 8, groupSize: role === "down" ? 16 : 32, symmetric: true };
    const { output } = await quantized(checkpoint, format);
    const bits = (ref: TensorRef) =>
      ref.scales?.format === "packed" ? [ref.scales.bits, ref.scales.columns] : [];
    const formatsOf = ({ model }: LoadedCheckpoint) => {
      const { feedForward } = model.layers[1]!;
      if (feedForward.kind !== "moe") throw new Error(feedForward.kind);
      return feedForward.experts.map(({ up, down }) => [...bits(up), ...bits(down)]);
    };
    expect(formatsOf(output).slice(0, 2)).toEqual([
      [2, 32, 2, 16],
      [8, 32, 8, 16],
    ]);
    // Dropping experts takes their bits along, in the files and in the config.
    const layers = moeLayers(output.model).map(({ index }) => ({ layer: index, experts: [1, 4, 6] }));
    const plan = createPlan(output.model, layers);
    const target = memoryTarget();
    await applyPlan(output, plan, target);
    await using pruned = await loadModel(memoryFolder(target.files));
    expect(formatsOf(pruned).map(([own]) => own)).toEqual([8, 2, 2]);
    const stored = [...pruned.tensors.values()].reduce((sum, { begin, end }) => sum + end - begin, 0);
    const shapes = [...pruned.tensors.keys()].filter((name) => name.endsWith("weight_shape")).length;
    expect(modelSize(output.model, plan).bytes).toBe(stored - 16 * shapes);
    expect(modelSize(pruned.model).bytes).toBe(stored - 16 * shapes);
    const [one, other] = moeLayers(pruned.model)[0]!.feedForward.experts.map(({ up }) => up) as [
      TensorRef,
      TensorRef,
    ];
    const { experts } = moeLayers(output.model)[0]!.feedForward;
    expect(await pruned.weights.read(one)).toEqual(await output.weights.read(experts[1]!.up));
    expect(await pruned.weights.read(other)).toEqual(await output.weights.read(experts[4]!.up));
    const targets = /"targets":\s*(\[[^\]]*experts\.0\.w1[^\]]*\])/.exec(
      new TextDecoder().decode(target.files.get("config.json")),
    );
    expect(JSON.parse(targets?.[1] ?? "[]")).not.toContain("model.layers.0.block_sparse_moe.experts.1.w1");
  });

  const refused: [string, FormatOf, string, string][] = [
    [
      "groups that do not divide a row",
      uniformFormat({ bits: 4, groupSize: 128, symmetric: true }),
      "COPPICE_USAGE",
      "do not divide the 64 columns",
    ],
    [
      "bits that nothing executes",
      () => ({ bits: 3 as 4, groupSize: 32, symmetric: true }),
      "COPPICE_USAGE",
      "cannot have 3 bits",
    ],
    ["nothing to do", () => undefined, "COPPICE_USAGE", "no matrix"],
    [
      "experts that go different ways",
      ({ expert }) => (expert === 0 ? undefined : { bits: 4, groupSize: 32, symmetric: true }),
      "COPPICE_USAGE",
      "those of other experts of layer 0 not quantized",
    ],
  ];
  for (const [what, format, code, part] of refused) {
    it(`refuses ${what} before it writes`, async () => {
      await using checkpoint = await open("mixtral");
      const error: unknown = await quantized(checkpoint, format).catch((thrown: unknown) => thrown);
      expect(isCoppiceError(error) && error.code).toBe(code);
      expect((error as Error).message).toContain(part);
    });
  }

  it("refuses quantized checkpoints, and stops when told to", async () => {
    await using checkpoint = await open("mixtral");
    const format = uniformFormat({ bits: 4, groupSize: 32, symmetric: true });
    const { output } = await quantized(checkpoint, format);
    await expect(quantized(output, format)).rejects.toThrow("is quantized already, as packed I32");
    const stop = AbortSignal.abort();
    await expect(quantized(checkpoint, format, { signal: stop })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
  });
});

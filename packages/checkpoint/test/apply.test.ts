import {
  applyPlan,
  inspectModel,
  type LoadedCheckpoint,
  loadModel,
  memoryFolder,
  memoryTarget,
  type OutputOptions,
  predictOutput,
  readProvenance,
} from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import {
  createPlan,
  type LayerPlan,
  modelSize,
  moeLayers,
  type Plan,
  parsePlan,
  RunEmitter,
} from "@coppice/core";
import { describe, expect, it } from "vitest";
import {
  bytesOf,
  editConfig,
  editTensors,
  expectError,
  type Files,
  fixtures,
  load,
  poison,
  tensorsOf,
  text,
  tinyFiles,
} from "./helpers.js";

const everyLayer = ({ model }: LoadedCheckpoint, plan: Omit<LayerPlan, "layer">): Plan =>
  createPlan(
    model,
    moeLayers(model).map(({ index }) => ({ layer: index, ...plan })),
  );

/** Applies a plan in memory and loads what came out. */
async function apply(checkpoint: LoadedCheckpoint, plan: Plan, options: OutputOptions = {}) {
  const target = memoryTarget();
  const summary = await applyPlan(checkpoint, plan, target, options);
  const files: Files = new Map(target.files);
  return { files, summary, output: await load(files) };
}

/** A merge of three of four experts into one, and a scaled single one. */
const merging = {
  experts: [3, 1],
  merge: [
    [0.25, 0, -0.5, 1.25],
    [0, 0.5, 0, 0],
  ],
} satisfies Omit<LayerPlan, "layer">;

describe("applyPlan", () => {
  for (const family of ["mixtral", "qwen3_moe"] as const) {
    for (const fused of [false, true]) {
      it(`keeps experts of ${fused ? "fused " : ""}${family} in slot order, bit by bit`, async () => {
        const files = await tinyFiles({ family, fused });
        const checkpoint = await load(files);
        const { output, files: written } = await apply(
          checkpoint,
          everyLayer(checkpoint, { experts: [2, 0, 3] }),
        );
        expect(output.model.family).toBe(family);
        for (const [position, layer] of moeLayers(output.model).entries()) {
          const original = moeLayers(checkpoint.model)[position]!.feedForward;
          const { router, experts } = layer.feedForward;
          expect(experts).toHaveLength(3);
          expect(router.topK).toBe(2);
          for (const [slot, expert] of [2, 0, 3].entries()) {
            for (const role of ["gate", "up", "down"] as const) {
              const now = await output.weights.read(experts[slot]![role]!);
              expect(now).toEqual(await checkpoint.weights.read(original.experts[expert]![role]!));
            }
          }
          const rows = await checkpoint.weights.read(original.router.weight);
          const kept = [2, 0, 3].flatMap((expert) => [...rows.slice(expert * 8, (expert + 1) * 8)]);
          expect([...(await output.weights.read(router.weight))]).toEqual(kept);
        }
        // Everything else is byte by byte the same.
        const [before, after] = [await tensorsOf(files), await tensorsOf(written)];
        for (const [name, tensor] of after) {
          if (!/block_sparse_moe|mlp/.test(name)) expect(tensor).toEqual(before.get(name));
        }
      });

      it(`merges experts of ${fused ? "fused " : ""}${family} as an independent computation does`, async () => {
        const checkpoint = await load(await tinyFiles({ family, fused }));
        const { output } = await apply(checkpoint, everyLayer(checkpoint, merging));
        for (const [position, layer] of moeLayers(output.model).entries()) {
          const sources = moeLayers(checkpoint.model)[position]!.feedForward.experts;
          for (const role of ["gate", "up", "down"] as const) {
            const values = await Promise.all(sources.map((expert) => checkpoint.weights.read(expert[role]!)));
            const merged = await output.weights.read(layer.feedForward.experts[0]![role]!);
            for (let i = 0; i < merged.length; i++) {
              const exact = 0.25 * values[0]![i]! - 0.5 * values[2]![i]! + 1.25 * values[3]![i]!;
              expect(merged[i]).toBe(nearestBfloat16(exact));
            }
            const half = await output.weights.read(layer.feedForward.experts[1]![role]!);
            expect(half).toEqual(values[1]!.map((value) => value / 2));
          }
        }
      });
    }
  }

  for (const dtype of ["F32", "F16"] as const) {
    it(`merges ${dtype} weights`, async () => {
      const checkpoint = await load(await tinyFiles({ dtype }));
      const { output } = await apply(checkpoint, everyLayer(checkpoint, merging));
      const { experts } = moeLayers(checkpoint.model)[1]!.feedForward;
      const values = await Promise.all(experts.map(({ up }) => checkpoint.weights.read(up)));
      const merged = await output.weights.read(moeLayers(output.model)[1]!.feedForward.experts[0]!.up);
      const step = dtype === "F32" ? 2 ** -24 : 2 ** -11;
      for (let i = 0; i < merged.length; i++) {
        const exact = 0.25 * values[0]![i]! - 0.5 * values[2]![i]! + 1.25 * values[3]![i]!;
        expect(Math.abs(merged[i]! - exact)).toBeLessThanOrEqual(Math.abs(exact) * step + 2 ** -25);
      }
    });
  }

  it("writes exactly what predictOutput and inspectModel say, the same every time", async () => {
    const source = (await tinyFiles()).set("tokenizer.json", bytesOf("{}"));
    const checkpoint = await load(source);
    const plan = everyLayer(checkpoint, merging);
    for (const options of [{}, { maxShardBytes: 700, metadata: { score: 0.5, recipe: ["ü"] } }]) {
      const predicted = await predictOutput(checkpoint, plan, options);
      const { files, summary, output } = await apply(checkpoint, plan, options);
      expect(summary).toEqual(predicted);
      expect(new Map(predicted.files.map(({ name, bytes }) => [name, bytes]))).toEqual(
        new Map([...files].map(([name, bytes]) => [name, bytes.length])),
      );
      expect(predicted.bytes).toBe([...files.values()].reduce((sum, { length }) => sum + length, 0));
      const { output: inspected } = await inspectModel(checkpoint, plan, options);
      const after = await inspectModel(output);
      expect(inspected).toMatchObject({
        ...predicted,
        parameters: after.parameters,
        activeParameters: after.activeParameters,
      });
      expect(predicted.tensorBytes).toBe(after.bytes);
      expect(after.bytes).toBe(modelSize(checkpoint.model, plan).bytes);
      expect([...(await apply(checkpoint, plan, options)).files]).toEqual([...files]);
    }
  });

  it("splits into shards of the asked size, and into one file when that is enough", async () => {
    const checkpoint = await load(await tinyFiles());
    const plan = everyLayer(checkpoint, { experts: [0, 1] });
    const single = await apply(checkpoint, plan);
    expect([...single.files.keys()]).toEqual(["model.safetensors", "config.json", "coppice.json"]);
    const { output, files, summary } = await apply(checkpoint, plan, { maxShardBytes: 500 });
    expect(output.shards.length).toBeGreaterThan(3);
    expect(output.shards[1]!.name).toMatch(/^model-00002-of-000\d\d\.safetensors$/);
    const index = JSON.parse(text(files.get("model.safetensors.index.json")));
    expect(index.metadata).toEqual({ total_size: summary.tensorBytes });
    expect(output.model.fingerprint).toBe(single.output.model.fingerprint);
    for (const { name } of output.shards) {
      const tensors = [...output.tensors.values()].filter(({ file }) => file === name);
      const bytes = tensors.reduce((sum, { begin, end }) => sum + end - begin, 0);
      expect(bytes <= 500 || tensors.length === 1).toBe(true);
    }
    await expectError(predictOutput(checkpoint, plan, { maxShardBytes: 0 }), "COPPICE_USAGE", "0");
  });

  it("changes the counts of config.json and not one other character", async () => {
    const files = await tinyFiles();
    const config = `{"rope_theta" : 1000000.0, "num_local_experts":4,\t"num_experts": 4 , "x": {"num_local_experts": 4},
      "rms_norm_eps": 1e-05, "list": [{"num_experts_per_tok": 2}], "num_experts_per_tok":2}`;
    const merged = { ...JSON.parse(text(files.get("config.json"))), ...JSON.parse(config) };
    const rest = Object.entries(merged).filter(([key]) => !(key in JSON.parse(config)));
    const whole = `${config.slice(0, -1)},${rest.map(([k, v]) => `${JSON.stringify(k)}:${JSON.stringify(v)}`).join()}}\n`;
    const checkpoint = await load(files.set("config.json", bytesOf(whole)));
    const { files: written } = await apply(checkpoint, everyLayer(checkpoint, { experts: [1], topK: 1 }));
    expect(text(written.get("config.json"))).toBe(
      whole
        .replace('"num_local_experts":4', '"num_local_experts":1')
        .replace('"num_experts": 4 ', '"num_experts": 1 ')
        .replace('"num_experts_per_tok":2', '"num_experts_per_tok":1'),
    );
  });

  it("lowers the top-k, keeps all experts under an empty plan, and dense layers as they are", async () => {
    const checkpoint = await load(await tinyFiles());
    const lower = await apply(checkpoint, everyLayer(checkpoint, { experts: [0, 1, 2, 3], topK: 1 }));
    expect(moeLayers(lower.output.model)[0]!.feedForward.router.topK).toBe(1);
    const same = await apply(checkpoint, createPlan(checkpoint.model));
    expect(same.output.model.fingerprint).toBe(checkpoint.model.fingerprint);
  });

  it("records where the checkpoint comes from", async () => {
    const checkpoint = await load(await tinyFiles());
    const plan = everyLayer(checkpoint, merging);
    const { files } = await apply(checkpoint, plan, { metadata: { recipe: "eep" } });
    const provenance = await readProvenance(memoryFolder(files));
    expect(provenance).toMatchObject({
      source: { family: "mixtral", fingerprint: checkpoint.model.fingerprint },
      versions: { "@coppice/checkpoint": expect.stringMatching(/^\d+\.\d+\.\d+/) },
      metadata: { recipe: "eep" },
    });
    expect(parsePlan(provenance!.plan, checkpoint.model)).toEqual(plan);
    expect(await readProvenance(checkpoint.folder)).toBeUndefined();
    for (const bad of ["{}", '{"format":"coppice.checkpoint","version":9}', "5"]) {
      const folder = memoryFolder({ "coppice.json": bytesOf(bad) });
      await expectError(readProvenance(folder), "COPPICE_FORMAT_CONFIG", "coppice.json");
    }
  });

  it("copies tokenizer and licence, not weights of other formats", async () => {
    const files = await tinyFiles();
    const companions = [
      "tokenizer.json",
      "tokenizer.model",
      "merges.txt",
      "chat_template.jinja",
      "LICENSE",
      "NOTICE",
    ];
    const others = [
      "pytorch_model.bin",
      "pytorch_model.bin.index.json",
      "x.gguf",
      "extra.safetensors",
      "README.md",
    ];
    for (const name of [...companions, ...others]) files.set(name, bytesOf(name));
    const checkpoint = await load(files);
    const { files: written } = await apply(checkpoint, everyLayer(checkpoint, { experts: [0, 1] }));
    for (const name of companions) expect(text(written.get(name))).toBe(name);
    for (const name of others) expect(written.has(name)).toBe(false);
  });

  it("carries a tensor called __proto__ along", async () => {
    const extra = { dtype: "U8", shape: [3], bytes: Uint8Array.of(1, 2, 3) } as const;
    const files = await editTensors(await tinyFiles(), (tensors) => tensors.set("__proto__", extra));
    const checkpoint = await load(editConfig(files, { ["__proto__x"]: 1 }));
    const plan = everyLayer(checkpoint, { experts: [0, 1] });
    const { output, files: written } = await apply(checkpoint, plan, { maxShardBytes: 300 });
    expect([...(await output.weights.read(output.tensors.get("__proto__")!))]).toEqual([1, 2, 3]);
    expect(text(written.get("config.json"))).toContain("__proto__x");
    expect(({} as { dtype?: unknown }).dtype).toBeUndefined();
  });

  it("prunes the fixtures, whose pruned copies load as ordinary checkpoints", async () => {
    for (const name of ["mixtral", "qwen3_moe"]) {
      await using checkpoint = await loadModel(await openFolder(`${fixtures}${name}`));
      const { output, files } = await apply(checkpoint, everyLayer(checkpoint, { experts: [7, 2, 4] }));
      expect(moeLayers(output.model).map(({ feedForward }) => feedForward.experts.length)).toEqual([3, 3, 3]);
      expect([...files.keys()]).toContain("generation_config.json");
      expect(files.has("golden.safetensors")).toBe(false);
    }
  });

  it("reports progress and the finished checkpoint", async () => {
    const checkpoint = await load(await tinyFiles());
    const emitter = new RunEmitter();
    const seen: number[] = [];
    const artifacts: string[] = [];
    emitter.on("progress", ({ done, total, unit }) => {
      expect(unit).toBe("bytes");
      seen.push(done / total);
    });
    emitter.on("artifact", ({ kind, path }) => artifacts.push(`${kind} ${path}`));
    await applyPlan(checkpoint, everyLayer(checkpoint, { experts: [0, 1] }), memoryTarget("here"), {
      emitter,
    });
    expect(seen.at(-1)).toBe(1);
    expect([...seen].sort((a, b) => a - b)).toEqual(seen);
    expect(artifacts).toEqual(["checkpoint here"]);
  });
});

describe("applyPlan refuses", () => {
  const refused = async (
    plan: (checkpoint: LoadedCheckpoint) => Plan,
    code: Parameters<typeof expectError>[1],
    ...parts: string[]
  ) => {
    const checkpoint = await load(await tinyFiles());
    const target = memoryTarget();
    await expectError(applyPlan(checkpoint, plan(checkpoint), target), code, ...parts);
    await expectError(predictOutput(checkpoint, plan(checkpoint)), code, ...parts);
    expect(target.files.size).toBe(0);
  };

  it("layers of different sizes", () =>
    refused(
      ({ model }) => createPlan(model, [{ layer: 1, experts: [0, 1] }]),
      "COPPICE_PLAN_EXPORT",
      "layer 0 has 4 experts",
      "layer 1 has 2",
    ));

  it("layers of different top-k", () =>
    refused(
      ({ model }) => createPlan(model, [{ layer: 0, experts: [0, 1, 2, 3], topK: 1 }]),
      "COPPICE_PLAN_EXPORT",
      "layer 0 has top-k 1",
      "layer 1 has 2",
    ));

  it("a router map", () =>
    refused(
      (checkpoint) =>
        everyLayer(checkpoint, {
          experts: [0, 1],
          routerMap: [
            [1, 0, 0, 0],
            [0, 1, 0.5, 0],
          ],
        }),
      "COPPICE_PLAN_EXPORT",
      "layer 0 has a router map",
    ));

  it("fewer experts than the top-k", () =>
    refused(
      (checkpoint) => everyLayer(checkpoint, { experts: [1] }),
      "COPPICE_PLAN_KEEP",
      "keep=1",
      "top-k=2",
    ));

  it("a plan of another model", () =>
    refused(
      (checkpoint) => ({
        ...everyLayer(checkpoint, { experts: [0, 1] }),
        model: { family: "mixtral", fingerprint: "0".repeat(64) },
      }),
      "COPPICE_PLAN_MODEL",
      "0000",
    ));

  it("a merge that overflows, and NaN among the weights that it merges", async () => {
    const name = "model.layers.0.block_sparse_moe.experts.2.w3.weight";
    for (const [word, code, part] of [
      [0x7f00, "COPPICE_PLAN_EXPORT", "experts.0.w3"],
      [0x7fc0, "COPPICE_FORMAT_NAN", `${name} in model.safetensors holds NaN at [1, 3]`],
    ] as const) {
      const checkpoint = await load(await poison(await tinyFiles(), name, 11, word));
      const target = memoryTarget();
      const plan = everyLayer(checkpoint, {
        experts: [3, 1],
        merge: [
          [0, 0, 900, 1],
          [0, 1, 0, 0],
        ],
      });
      await expectError(applyPlan(checkpoint, plan, target), code, part);
      expect(target.files.size).toBe(0);
    }
  });

  it("a checkpoint that was opened for its headers alone, whose output it still predicts", async () => {
    const files = await tinyFiles();
    const whole = files.get("model.safetensors") as Uint8Array;
    const checkpoint = await loadModel(
      memoryFolder(new Map(files).set("model.safetensors", whole.subarray(0, whole.length - 100))),
      { headersOnly: true },
    );
    const plan = everyLayer(checkpoint, { experts: [0, 1] });
    await expectError(
      applyPlan(checkpoint, plan, memoryTarget()),
      "COPPICE_FORMAT_TRUNCATED",
      "header alone",
    );
    const complete = await load(files);
    const { tensorBytes } = await predictOutput(complete, everyLayer(complete, { experts: [0, 1] }));
    expect((await predictOutput(checkpoint, plan)).tensorBytes).toBe(tensorBytes);
    const signal = AbortSignal.abort();
    await expectError(
      predictOutput(complete, everyLayer(complete, { experts: [0, 1] }), { signal }),
      "COPPICE_ABORTED",
    );
  });

  it("a target that is taken, and stops when aborted", async () => {
    const checkpoint = await load(await tinyFiles());
    const target = memoryTarget("out");
    const plan = everyLayer(checkpoint, { experts: [0, 1] });
    const controller = new AbortController();
    const emitter = new RunEmitter();
    emitter.on("progress", () => controller.abort());
    const options = { emitter, signal: controller.signal, maxShardBytes: 300 };
    await expectError(applyPlan(checkpoint, plan, target, options), "COPPICE_ABORTED");
    expect(target.files.size).toBe(0);
    await applyPlan(checkpoint, plan, target);
    await expectError(applyPlan(checkpoint, plan, target), "COPPICE_IO_EXISTS", "out");
  });
});

/** The bfloat16 nearest to a number, ties to even, found by comparing the two neighbours. */
function nearestBfloat16(value: number): number {
  const bits = new Uint32Array(1);
  const float = new Float32Array(bits.buffer);
  // Double rounding through float32 is what is stored; the products here are exact in float64.
  float[0] = value;
  const single = float[0]!;
  bits[0] = bits[0]! & 0xffff0000;
  const low = float[0]!;
  const isEven = (bits[0]! & 0x10000) === 0;
  bits[0] = bits[0]! + 0x10000;
  const high = float[0]!;
  const [below, above] = [Math.abs(single - low), Math.abs(high - single)];
  return below < above || (below === above && isEven) ? low : high;
}

import {
  type AttentionNoteOptions,
  applyPlan,
  attentionNoteFiles,
  type LoadedCheckpoint,
  memoryTarget,
  type OutputOptions,
  predictOutput,
  readProvenance,
  rewriteCheckpoint,
} from "@coppice/checkpoint";
import {
  type AttentionPlan,
  attentionPlanModel,
  createPlan,
  type MoeModel,
  moeLayers,
  parseAttentionPlan,
} from "@coppice/core";
import { describe, expect, it } from "vitest";
import { bytesOf, editJson, expectError, type Files, load, text, tinyFiles } from "./helpers.js";

function spans(model: MoeModel): AttentionPlan {
  return {
    format: "coppice.attention",
    version: 1,
    model: attentionPlanModel(model),
    blockSize: 4,
    sinks: 2,
    rules: [
      { alpha: 0, beta: 1 },
      { alpha: -8, beta: 0.5 },
    ],
    layers: [[1], null],
    report: { predicted: [0.25] },
  };
}

/** Keeps these experts of every layer, and loads what came out. */
async function kept(checkpoint: LoadedCheckpoint, experts: readonly number[], options: OutputOptions = {}) {
  const { model } = checkpoint;
  const target = memoryTarget();
  const layers = moeLayers(model).map(({ index }) => ({ layer: index, experts }));
  await applyPlan(checkpoint, createPlan(model, layers), target, options);
  return { files: new Map(target.files) as Files, output: await load(new Map(target.files)) };
}

/** Every tensor copied. */
async function copied(checkpoint: LoadedCheckpoint) {
  const target = memoryTarget();
  const tensors = [...checkpoint.tensors.values()].map((source) => ({ ...source, source }));
  await rewriteCheckpoint(checkpoint, target, tensors, async () => {});
  return { files: new Map(target.files) as Files, output: await load(new Map(target.files)) };
}

describe("an attention plan", () => {
  it("is described beside coppice.json for people and for runtimes that know windows", async () => {
    const original = await load(await tinyFiles());
    expect(original.model.contextLength).toBe(4096);
    const { files, output } = await kept(original, [0, 2], { attention: spans(original.model) });
    for (const written of [files, (await copied(output)).files]) {
      const note = text(written.get("ATTENTION.md"));
      // -8 + 4096 / 2 tokens in blocks of 4, and a layer that sees everything.
      expect(note).toContain("| 0 | 2040 | 2040 |\n| 1 | as the model is | as the model is |\n");
      expect(note).toContain("the first 2 tokens");
      expect(note).toContain("74.9 % of the context");
      // The mean of 2040 and 4096; the layer that is left alone sees everything.
      expect(note).toContain("`sliding_window` of 3068. It cuts 1 of 2 KV heads");
      expect(note).toContain("none: 1 of 2 KV heads see everything");
    }
    expect((await copied(original)).files.has("ATTENTION.md")).toBe(false);
  });

  it("is described with the window that cuts no head, and with what keeps it", async () => {
    const { model } = await load(await tinyFiles());
    const plan = {
      ...spans(model),
      layers: [[1], [0]],
      rules: [
        { alpha: 400, beta: 0 },
        { alpha: 100, beta: 0 },
      ],
    };
    const note = (options: AttentionNoteOptions, of: AttentionPlan = plan) => {
      const [file] = attentionNoteFiles(of, model, options);
      const bytes = new Uint8Array(file?.bytes ?? 0);
      return Promise.resolve(file?.contents[0]?.fill(0, bytes, undefined)).then(() => text(bytes));
    };
    const words = await note({ keptBy: "graph", length: 1024 });
    expect(words).toContain("The graphs in `onnx` keep exactly this");
    expect(words).toContain("`sliding_window` of 400, the longest span");
    expect(words).toContain("`sliding_window` of 250. It cuts 1 of 2");
    expect(words).toContain("| 0 | 100 | 100 |\n| 1 | 400 | 400 |");
    const alike = { ...plan, sinks: 0, layers: [[1], [1]] };
    const same = await note({ length: 1024 }, alike);
    expect(same).toContain("`sliding_window` of 100, which is the span of every head");
    expect(same).toContain("windows lose none");
    // A text of so many tokens is within all spans.
    expect(await note({ keptBy: "nothing", length: 64 })).toMatch(
      /do not keep the plan.*\n.*\| 0 \| 64 \| none \|/s,
    );
  });

  it("travels in coppice.json through pruning, pruning again and rewriting", async () => {
    const original = await load(await tinyFiles());
    expect(original.attention).toBeUndefined();
    expect(original.model.derivedFrom).toBeUndefined();
    const plan = spans(original.model);
    const once = (await kept(original, [0, 2, 3], { attention: plan })).output;
    const twice = (await kept(once, [1, 2])).output;
    const last = (await copied(twice)).output;
    for (const { attention } of [once, twice, last]) expect(attention).toEqual(plan);
    const [a, b, c] = [original, once, twice].map(({ model }) => model.fingerprint);
    expect(new Set([a, b, c]).size).toBe(3);
    expect(once.model.derivedFrom).toEqual([a]);
    expect(twice.model.derivedFrom).toEqual([b, a]);
    expect(last.model.derivedFrom).toEqual([c, b, a]);
    // What it says of experts stays what was said when they were pruned.
    expect((await readProvenance(last.folder))?.source.fingerprint).toBe(b);
  });

  it("that was made for any checkpoint on the way fits, and no other", async () => {
    const original = await load(await tinyFiles());
    const once = (await kept(original, [0, 2, 3])).output;
    const last = (await copied((await kept(once, [1, 2])).output)).output;
    for (const { model } of [original, once, last])
      expect(parseAttentionPlan(spans(model), last.model)).toEqual(spans(model));
    const other = await load(await tinyFiles({ seed: 8 }));
    const foreign = predictOutput(last, createPlan(last.model), { attention: spans(other.model) });
    await expectError(foreign, "COPPICE_ATTENTION_MODEL", other.model.fingerprint, last.model.fingerprint);
    await expectError(
      predictOutput(original, createPlan(original.model), { attention: spans(last.model) }),
      "COPPICE_ATTENTION_MODEL",
      last.model.fingerprint,
    );
  });

  it("is replaced by another one, and the fingerprint is that of the weights alone", async () => {
    const original = await load(await tinyFiles());
    const plan = spans(original.model);
    const first = (await kept(original, [0, 1, 2, 3], { attention: plan })).output;
    expect(first.model.fingerprint).toBe(original.model.fingerprint);
    const second = (await kept(first, [0, 1, 2, 3], { attention: { ...plan, sinks: 3 } })).output;
    expect(second.attention?.sinks).toBe(3);
  });

  it("is read from a folder that was rewritten from one without coppice.json", async () => {
    const original = await load(await tinyFiles());
    const { output } = await copied(original);
    expect(output.model.derivedFrom).toEqual([original.model.fingerprint]);
    expect(output.model.fingerprint).toBe(original.model.fingerprint);
  });

  it("is found without reading the plan for experts behind it", async () => {
    const original = await load(await tinyFiles());
    const plan = spans(original.model);
    const { files } = await kept(original, [0, 2], { attention: plan });
    const json = text(files.get("coppice.json"));
    const at = json.indexOf('"plan": ') + '"plan": '.length;
    // No valid JSON: whoever reads all of it fails.
    const damaged = new Map(files).set(
      "coppice.json",
      bytesOf(`${json.slice(0, at)}${"7".repeat(4_000_000)}!`),
    );
    const output = await load(damaged);
    expect(output.attention).toEqual(plan);
    expect(output.model.derivedFrom).toEqual([original.model.fingerprint]);
    await expectError(readProvenance(output.folder), "COPPICE_FORMAT_CONFIG", "coppice.json");
    // Written by others, in another order: all of it is read.
    const { plan: experts, attention, ...rest } = JSON.parse(json);
    const reordered = { ...rest, plan: experts, metadata: { note: "x".repeat(4_000_000) }, attention };
    const again = await load(new Map(files).set("coppice.json", bytesOf(JSON.stringify(reordered))));
    expect(again.attention).toEqual(plan);
  });

  it("is refused with what is wrong when a folder's coppice.json is", async () => {
    const original = await load(await tinyFiles());
    const plan = spans(original.model);
    const { files } = await kept(original, [0, 2], { attention: plan });
    const bad = (changes: Record<string, unknown>) => load(editJson(files, "coppice.json", changes));
    await expectError(bad({ derivedFrom: "f00d" }), "COPPICE_FORMAT_CONFIG", "derivedFrom", "f00d");
    await expectError(bad({ derivedFrom: [1] }), "COPPICE_FORMAT_CONFIG", "derivedFrom");
    const many = new Array(1001).fill("a");
    await expectError(bad({ derivedFrom: many }), "COPPICE_FORMAT_CONFIG", "1000", "1001");
    await expectError(bad({ attention: { ...plan, sinks: -1 } }), "COPPICE_ATTENTION_INVALID", "-1");
    const heads = { ...plan, model: { ...plan.model, kvHeads: 2 } };
    await expectError(bad({ attention: heads }), "COPPICE_ATTENTION_MODEL", "2 KV heads", "has 1");
    const older = await load(editJson(files, "coppice.json", { derivedFrom: undefined }));
    expect(older.model.derivedFrom).toEqual([original.model.fingerprint]);
  });
});

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { AttentionPlan } from "@coppice/core";
import { sampleAttention } from "@coppice/plugin-kit";
import { loadFixture } from "@coppice/plugin-kit/node";
import { describe, expect, it } from "vitest";
import { coppiceHere as coppice, coppiceJson } from "./cli.js";
import { copyModel, workshop } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));

describe("apply --attention", () => {
  it("writes a checkpoint with the plan, which pruning hands on", async () => {
    const plan = sampleAttention((await loadFixture("mixtral")).model);
    const file = join(work, "attention.json");
    writeFileSync(file, JSON.stringify(plan));
    const sparse = join(work, "sparse");
    const applied = await coppiceJson(["apply", model, "--attention", file, "--out", sparse]);
    expect(applied).toMatchObject({ plan: { layers: [] } });
    const pruned = join(work, "pruned");
    await coppiceJson(["prune", sparse, "--keep", "4", "--criterion", "random", "--out", pruned]);
    for (const folder of [sparse, pruned]) {
      const { attention } = JSON.parse(readFileSync(join(folder, "coppice.json"), "utf8")) as Record<
        string,
        unknown
      >;
      expect(attention).toEqual(plan);
      expect(readFileSync(join(folder, "ATTENTION.md"), "utf8")).toContain(
        "| tokens that each KV head sees of ",
      );
    }
    expect(await coppiceJson(["verify", model, sparse])).toMatchObject({ equal: true });
  });

  it("is told of by inspect", async () => {
    const sparse = join(work, "sparse");
    const { attention } = await coppiceJson(["inspect", sparse]);
    // As the plan itself says: every layer has two of the six rules.
    const { rules, sinks, blockSize, layers } = JSON.parse(
      readFileSync(join(work, "attention.json"), "utf8"),
    ) as AttentionPlan;
    const heads = rules.map((rule, i) => ({
      ...rule,
      heads: layers.flat().filter((own) => own === i).length,
    }));
    expect(attention).toEqual({
      length: 512,
      density: expect.closeTo(0.5, 0),
      sinks,
      blockSize,
      rules: heads.filter((rule) => rule.heads > 0),
      otherLayers: 0,
    });
    const { stdout } = await coppice(["inspect", sparse]);
    expect(stdout).toMatch(/attention plan +density 0\.\d\d at 512 tokens, 3 sinks, blocks of 2\n/);
    expect(stdout).toMatch(/spans of N tokens +.*\d KV heads/);
    expect((await coppice(["inspect", model])).stdout).not.toContain("attention plan");
  });

  it("is exported with the model, by default and on request, where the format keeps it", async () => {
    const [sparse, file] = [join(work, "sparse"), join(work, "attention.json")];
    const out = (name: string) => join(work, name);
    const onnx = (from: string, name: string, ...args: string[]) =>
      coppiceJson(["export", from, "--format", "onnx", "--out", out(name), ...args]);
    expect(await onnx(sparse, "own")).toMatchObject({ attention: { length: 512 } });
    expect(await onnx(sparse, "dense", "--attention", "none")).not.toHaveProperty("attention");
    const short = ["--target", "wasm", "--attention", file, "--attention-length", "64"];
    expect(await onnx(model, "short", ...short)).toMatchObject({ attention: { length: 64 } });
    const note = (name: string) => readFileSync(join(out(name), "ATTENTION.md"), "utf8");
    expect(note("own")).toContain("The graphs in `onnx` keep exactly this");
    expect(note("dense")).toContain("The files here do not keep the plan");
    expect(note("short")).toContain("At 64 tokens");
    const tokens = async (name: string) => {
      const ids = Array.from({ length: 300 }, (_, i) => (i * 37) % 250).join(",");
      const written = await coppiceJson(["generate", out(name), "--ids", ids, "--max-tokens", "40"]);
      return written["tokens"];
    };
    expect(await tokens("own")).toHaveLength(40);
    expect(await tokens("own")).not.toEqual(await tokens("dense"));
    const length = ["export", model, "--format", "onnx", "--attention-length", "64", "--out", out("never")];
    expect((await coppice(length)).stderr).toContain("COPPICE_USAGE");
    // Left out with a word of it; refused when it was asked for.
    for (const format of [
      ["--format", "gguf"],
      ["--format", "onnx", "--target", "webgpu"],
    ]) {
      const left = await coppice(["export", sparse, ...format, "--out", out(`left${format.length}`)]);
      expect(left).toMatchObject({ code: 0, stderr: expect.stringContaining("carry no attention plan") });
      expect(note(`left${format.length}`)).toContain("The files here do not keep the plan");
      const asked = ["export", model, ...format, "--attention", file, "--out", out("never")];
      expect((await coppice(asked)).stderr).toContain("COPPICE_EXPORT_UNSUPPORTED");
      expect(existsSync(out("never"))).toBe(false);
    }
  });

  it("refuses plans of other models, and nothing to apply", async () => {
    const plan = sampleAttention((await loadFixture("qwen3_moe")).model);
    const file = join(work, "other.json");
    writeFileSync(file, JSON.stringify(plan));
    const out = join(work, "never");
    const foreign = await coppice(["apply", model, "--attention", file, "--out", out]);
    expect(foreign.stderr).toContain("COPPICE_ATTENTION_MODEL");
    const nothing = await coppice(["apply", model, "--out", out]);
    expect(nothing.stderr).toContain("COPPICE_USAGE");
    expect(nothing.stderr).toContain("--attention");
  });
});

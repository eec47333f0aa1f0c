import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
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
    const exported = await coppice(["export", sparse, "--format", "onnx", "--out", join(work, "onnx")]);
    expect(exported).toMatchObject({ code: 0, stderr: expect.stringContaining("attention plan") });
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

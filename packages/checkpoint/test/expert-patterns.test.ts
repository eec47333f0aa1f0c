import { readdirSync, readFileSync } from "node:fs";
import { applyPlan, loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { createPlan, moeLayers } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { fixtures } from "./helpers.js";

/** The Qwen3-MoE fixture with these settings of a quantization, which its tensors do not have. */
async function withSettings(quantization: object) {
  const folder = `${fixtures}/qwen3_moe`;
  const files = new Map<string, Uint8Array>(
    readdirSync(folder).map((name) => [name, readFileSync(`${folder}/${name}`)]),
  );
  const config = JSON.parse(new TextDecoder().decode(files.get("config.json")));
  config.quantization_config = { quant_method: "fp8", ...quantization };
  files.set("config.json", new TextEncoder().encode(JSON.stringify(config)));
  return loadModel(memoryFolder(files));
}

const module = "model.layers.0.mlp.experts.7.gate_proj";

describe("settings of a quantization that name a single expert", () => {
  it.each([
    ["keys", { extra_config: { [module]: { bits: 8 } } }, "extra_config"],
    ["keys that are patterns", { dynamic: { "-:.*experts\\.7\\..*": {} } }, "dynamic"],
    ["patterns", { ignore: ["lm_head", "re:.*experts.7.*"] }, "re:.*experts.7"],
  ])("are refused before anything is written: %s", async (_, settings, shown) => {
    const loaded = await withSettings(settings);
    const layers = moeLayers(loaded.model).map(({ index }) => ({ layer: index, experts: [7, 6, 5, 4] }));
    const target = memoryTarget();
    await expect(applyPlan(loaded, createPlan(loaded.model, layers), target)).rejects.toMatchObject({
      code: "COPPICE_PLAN_EXPORT",
      message: expect.stringContaining(shown),
    });
    expect(target.files.size).toBe(0);
    // Numbers that stay need no new names.
    await applyPlan(loaded, createPlan(loaded.model), target);
    expect(target.files.size).toBeGreaterThan(1);
  });

  it("are no such when they mean all experts", async () => {
    const loaded = await withSettings({
      ignore: ["re:.*experts.*"],
      dynamic: { "-:.*shared_experts.*": {} },
    });
    const layers = moeLayers(loaded.model).map(({ index }) => ({ layer: index, experts: [7, 6, 5, 4] }));
    const target = memoryTarget();
    await applyPlan(loaded, createPlan(loaded.model, layers), target);
    expect(target.files.has("config.json")).toBe(true);
  });
});

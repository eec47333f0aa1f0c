import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));

describe("export --format onnx", () => {
  it("writes a folder with a graph, its weights and a config for the target", async () => {
    const out = join(work, "onnx");
    const result = await coppiceJson(["export", model, "--format", "onnx", "--expert-outputs", "--out", out]);
    expect(result).toMatchObject({ format: "onnx", target: "cpu", type: "fp32" });
    for (const { name, bytes } of result["files"] as { name: string; bytes: number }[]) {
      expect([name, readFileSync(join(out, name)).length]).toEqual([name, bytes]);
    }
    expect(existsSync(join(out, "onnx/model.onnx"))).toBe(true);
    const config = JSON.parse(readFileSync(join(out, "config.json"), "utf8"));
    expect(config["transformers.js_config"]).toMatchObject({ use_external_data_format: { "model.onnx": 1 } });
  });

  it("refuses unknown targets and options of other formats, before it writes", async () => {
    const out = join(work, "refused");
    const args = ["export", model, "--format", "onnx", "--out", out];
    const target = await coppiceHere([...args, "--target", "npu"]);
    expect(target).toMatchObject({ code: 2, stderr: expect.stringContaining("cpu, wasm, webgpu") });
    const foreign = await coppiceHere([...args, "--type", "q4_0"]);
    expect(foreign).toMatchObject({ code: 2, stderr: expect.stringContaining("--type") });
    const tooSmall = await coppiceHere([...args, "--max-file-size", "100"]);
    expect(tooSmall).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("COPPICE_EXPORT_UNSUPPORTED"),
    });
    expect(existsSync(out)).toBe(false);
  });
});

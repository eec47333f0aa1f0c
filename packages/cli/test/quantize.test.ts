import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseSafetensors, serializeSafetensors } from "@coppice/checkpoint";
import { describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const task = writeTask(join(work, "task.jsonl"), 4);

describe("quantize", () => {
  it("writes a checkpoint that the other commands read", async () => {
    const out = join(work, "q4");
    const args = ["quantize", model, "--bits", "4", "--group", "16", "--out", out];
    const written = await coppiceJson(args);
    expect(written).toMatchObject({ out, method: "rtn" });
    expect(written["bytesAfter"]).toBeLessThan(0.4 * (written["bytesBefore"] as number));
    const inspected = await coppiceJson(["inspect", out]);
    expect(inspected).toMatchObject({ bytes: written["bytesAfter"], experts: 8 });
    expect(inspected["quantization"]).toContain("4");
    const scored = await coppiceJson(["eval", out, "--task", task, "--backend", "reference"]);
    expect(scored).toMatchObject({ samples: 4 });
    const plain = await coppiceHere([...args.slice(0, -1), join(work, "again"), "--method", "hqq"]);
    expect(plain.code).toBe(0);
    expect(plain.stdout).toContain("by hqq");
    expect(await coppiceHere(["quantize", out, "--out", join(work, "twice")])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("is quantized already"),
    });
  });

  it("gives the head 8 bits, and what was asked for instead, where it is the embedding too", async () => {
    const ends = async (source: string, ...args: string[]) => {
      const out = join(work, `ends-${source.length}-${args.join("")}`);
      const written = await coppiceJson(["quantize", source, "--group", "16", ...args, "--out", out]);
      const matrices = written["matrices"] as { module: string; format: { bits: number } }[];
      const found = matrices.filter(({ module }) => /embed|head/.test(module));
      return found.map(({ module, format }) => [module.replace(/.*\./, ""), format.bits]);
    };
    expect(await ends(model)).toEqual([["lm_head", 8]]);
    expect(await ends(model, "--head-bits", "keep")).toEqual([]);
    const tied = copyModel(join(work, "tied-model"), "qwen3_moe");
    const config = JSON.parse(readFileSync(join(tied, "config.json"), "utf8"));
    writeFileSync(join(tied, "config.json"), JSON.stringify({ ...config, tie_word_embeddings: true }));
    const file = join(tied, "model.safetensors");
    const { tensors } = await parseSafetensors(readFileSync(file), file);
    const others = [...tensors].filter(([name]) => name !== "lm_head.weight");
    writeFileSync(file, serializeSafetensors(new Map(others)));
    expect(await ends(tied)).toEqual([["embed_tokens", 8]]);
    expect(await ends(tied, "--head-bits", "keep")).toEqual([]);
    expect(await ends(tied, "--embedding-bits", "4")).toEqual([["embed_tokens", 4]]);
    const out = join(work, "two");
    const both = ["--head-bits", "8", "--embedding-bits", "4"];
    expect(await coppiceHere(["quantize", tied, "--group", "16", ...both, "--out", out])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("embedding and head in one"),
    });
    expect(existsSync(out)).toBe(false);
  });

  it.each(["gptq", "awq"])("learns from data by %s, and says what it knew too little of", async (method) => {
    const out = join(work, method);
    const args = [
      "quantize",
      model,
      "--method",
      method,
      "--rotate",
      "--data",
      task,
      "--backend",
      "reference",
    ];
    const written = await coppiceJson([...args, "--set", "leastTokens=20", "--out", out]);
    const matrices = written["matrices"] as { fallback?: string }[];
    expect(matrices.some(({ fallback }) => fallback === undefined)).toBe(true);
    const other = await coppiceHere([...args, "--set", "leastTokens=100000", "--out", `${out}-2`]);
    expect(other.stdout).toMatch(
      /fallen back\s+\d+ matrices: model\.layers\.0\.\S+ \(rounded to nearest: \d+ inputs, fewer/,
    );
  });

  const faults: [string, string[], string][] = [
    ["bits that nothing executes", ["--bits", "3"], "expected one of 2, 4, 8"],
    ["groups that nothing executes", ["--group", "48"], "expected one of 16, 32, 64, 128, 256"],
    ["groups that do not divide a row", ["--group", "128"], "do not divide the 64 columns"],
    ["methods without the data that they need", ["--method", "gptq"], "needs --data"],
    ["data for nothing", ["--method", "rtn", "--data", task], "works from the weights alone"],
    ["unknown methods", ["--method", "best"], "best"],
    ["an output inside of the model", ["--out", join(model, "inside")], "lies inside the checkpoint"],
  ];
  for (const [what, args, message] of faults) {
    it(`refuses ${what} and writes nothing`, async () => {
      const out = join(work, "none");
      const { code, stderr } = await coppiceHere(["quantize", model, "--out", out, ...args]);
      expect(code).toBeGreaterThan(0);
      expect(stderr).toContain(message);
      expect(existsSync(out)).toBe(false);
    });
  }
});

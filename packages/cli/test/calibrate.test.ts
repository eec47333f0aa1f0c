import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson, start } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
let model: string;
let task: string;
const path = (name: string) => join(work, name);

beforeAll(() => {
  model = copyModel(path("model"));
  task = writeTask(path("task.jsonl"), 12);
});

const calibrate = (out: string, ...more: string[]) =>
  coppiceJson(["calibrate", model, "--data", task, "--out", path(out), ...more]);

const more = ["--with", "outputGram,unitSquares", "--sample", "inputs,grams", "--sample-tokens", "20"];

describe("calibrate", () => {
  it("collects more on demand, which stats shows and merges", async () => {
    const made = await calibrate("more.safetensors", ...more);
    expect(made).toMatchObject({
      extras: ["unitSquares", "outputGram"],
      sample: { tokens: 20, limit: 20, fields: ["logits", "inputs", "grams"] },
    });
    const shown = await coppiceJson(["stats", "show", path("more.safetensors")]);
    expect(shown).toMatchObject({ extras: made["extras"], sample: made["sample"] });
    const text = (await coppiceHere(["stats", "show", path("more.safetensors")])).stdout;
    expect(text).toMatch(/^with +unitSquares, outputGram$/m);
    expect(text).toMatch(/^sample +20 tokens with logits, inputs, grams, [\d.]+ kB$/m);
    const other = writeTask(path("other.jsonl"), 3, 70);
    const second = ["calibrate", model, "--data", other, "--out"];
    await coppiceJson([...second, path("second.safetensors"), ...more]);
    await coppiceJson([...second, path("bare.safetensors")]);
    const merge = ["stats", "merge", path("more.safetensors")];
    const merged = await coppiceJson([
      ...merge,
      path("second.safetensors"),
      "--out",
      path("both.safetensors"),
    ]);
    expect(merged).toMatchObject({ sample: { tokens: 20 } });
    const refused = await coppiceHere([...merge, path("bare.safetensors"), "--out", path("x"), "--json"]);
    expect(refused.json()).toMatchObject({
      error: { code: "COPPICE_USAGE", message: expect.stringContaining("a sample of logits, inputs, grams") },
    });
  });

  it("reads what the model writes itself", async () => {
    const prompts = await calibrate("prompts.safetensors", "--kind", "prompts");
    const own = await calibrate("own.safetensors", "--kind", "generations", "--max-tokens", "3");
    expect(own["sources"]).toMatchObject([{ kind: "generations", options: { maxTokens: 3 } }]);
    expect(own["tokens"]).toBeGreaterThan(prompts["tokens"] as number);
    expect(own["tokens"]).toBeLessThanOrEqual((prompts["tokens"] as number) + 3 * 12);
  });

  it.each([
    ["--max-tokens", "3"],
    ["--sample-tokens", "3"],
    ["--sample", "input"],
    ["--sample", "logits", "--sample-tokens", "0"],
    ["--kind", "text"],
    ["--work", "folder"],
    ["--memory", "1GB", "--workers", "2"],
    ["--memory", "1GB", "--kind", "generations"],
    ["--memory", "1MB"],
  ])("refuses %s %s", async (...words) => {
    const out = path("refused.safetensors");
    const finished = await coppiceHere([
      "calibrate",
      model,
      "--data",
      task,
      "--out",
      out,
      ...words,
      "--json",
    ]);
    expect(finished.code).toBe(2);
    expect(finished.json()).toMatchObject({ error: { code: "COPPICE_USAGE" } });
    expect(existsSync(out)).toBe(false);
    expect(existsSync(`${out}.partial`)).toBe(false);
  });

  it("refuses text without prompts", async () => {
    writeFileSync(path("text.txt"), "Some words to read.");
    const words = ["calibrate", model, "--data", path("text.txt"), "--out", path("text.safetensors")];
    expect(await coppiceJson(words)).toMatchObject({ sources: [{ kind: "text" }] });
    rmSync(path("text.safetensors"));
    const refused = await coppiceHere([...words, "--kind", "generations", "--json"]);
    expect(refused.json()).toMatchObject({ error: { code: "COPPICE_USAGE" } });
  });
});

describe("calibrate --memory", () => {
  it("gives the same file some layers at a time, and says before how long it takes", async () => {
    await calibrate("whole.safetensors", ...more);
    const out = path("parts.safetensors");
    const words = ["calibrate", model, "--data", task, "--out", out, ...more, "--memory", "3GB", "--json"];
    const finished = await coppiceHere(words);
    expect(finished.code).toBe(0);
    expect(finished.stderr).toMatch(
      /Estimate: about \d+ s to go, .* as measured on \d+ tokens of layers 0 to 2\./,
    );
    expect(finished.json()).toMatchObject({ estimate: { loads: 1, seconds: expect.any(Number) } });
    expect(readFileSync(out)).toEqual(readFileSync(path("whole.safetensors")));
    expect(existsSync(`${out}.partial`)).toBe(false);
  });

  it.each(["SIGKILL", "SIGINT"] as const)("continues after %s", async (signal) => {
    const out = path(`${signal}.safetensors`);
    // 312 MB leave room for one layer.
    const words = ["calibrate", model, "--data", task, "--out", out, "--memory", "300.9MB", "--json"];
    const partial = `${out}.partial`;
    const { child, done } = start(words);
    const finished = () =>
      existsSync(partial) && readdirSync(partial).some((name) => name.startsWith("layers-"));
    while (child.exitCode === null && !finished()) await new Promise((resolve) => setTimeout(resolve, 2));
    child.kill(signal);
    const stopped = await done;
    if (signal === "SIGKILL") expect(stopped.signal).toBe(signal);
    else
      expect(stopped).toMatchObject({
        code: 130,
        stderr: expect.stringContaining("the same command continues"),
      });
    const other = await coppiceHere([...words, "--limit", "3"]);
    expect(other.json()).toMatchObject({ error: { code: "COPPICE_RUN_IDENTITY" } });
    const resumed = await coppiceHere(words);
    expect(resumed.stderr).toContain("Continuing the work in");
    expect(resumed.code).toBe(0);
    const plain = `${signal}-unstopped.safetensors`;
    await calibrate(plain);
    expect(readFileSync(out)).toEqual(readFileSync(path(plain)));
    expect(existsSync(partial)).toBe(false);
  });
});

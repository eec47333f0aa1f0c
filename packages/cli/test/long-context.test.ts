import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { attentionPlanModel } from "@coppice/core";
import { loadFixture } from "@coppice/plugin-kit/node";
import { describe, expect, it } from "vitest";
import { coppiceHere as coppice, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const task = writeTask(join(work, "task.jsonl"), 3);
const text = join(work, "text.txt");
writeFileSync(text, "Some words that a model may be perplexed by, or not. ".repeat(12));
const here = ["--backend", "reference", "--workers", "1"];

async function planFile(name: string, change: object = {}): Promise<string> {
  const { model: spec } = await loadFixture("mixtral");
  const path = join(work, `${name}.json`);
  const plan = {
    format: "coppice.attention",
    version: 1,
    model: attentionPlanModel(spec),
    blockSize: 4,
    sinks: 2,
    rules: [{ alpha: 8, beta: 0 }],
    layers: spec.layers.map(() => [0, 0]),
    ...change,
  };
  writeFileSync(path, JSON.stringify(plan));
  return path;
}

describe("eval --long-context", () => {
  it("scores by length and depth", async () => {
    const words = ["eval", model, "--long-context", "retrieval", "--lengths", "200,120", "--depths", "0,1"];
    const json = await coppiceJson([...words, "--samples", "1", "--metric", "log-likelihood", ...here]);
    expect(json).toMatchObject({ longContext: "retrieval", metric: "log-likelihood", samples: 4 });
    const cells = json["cells"] as { length: number; depth: number; value: number }[];
    expect(cells.map(({ length, depth }) => [length, depth])).toEqual([
      [200, 0],
      [200, 1],
      [120, 0],
      [120, 1],
    ]);
    const lengths = json["lengths"] as { length: number; value: number; samples: number }[];
    expect(lengths.map(({ length, samples }) => [length, samples])).toEqual([
      [200, 2],
      [120, 2],
    ]);
    expect(lengths[0]?.value).toBeCloseTo(((cells[0]?.value ?? 0) + (cells[1]?.value ?? 0)) / 2, 9);
  });

  it("shows facts and positions as tables", async () => {
    const facts = await coppice([
      ...["eval", model, "--long-context", "facts", "--lengths", "300", "--depths", "0.5", "--samples", "1"],
      ...["--confusing", "1", "--data", text, ...here],
    ]);
    expect(facts.stdout).toMatch(/keyword-score +mean word overlap/);
    expect(facts.stdout).toMatch(/length +depth 0\.5 +all depths at 95 % +samples\n +300 +0\.000/);
    const positions = await coppice([
      ...["eval", model, "--long-context", "positions", "--data", text, "--lengths", "60", "--parts", "2"],
      ...["--limit", "2", "--attention", await planFile("shown"), ...here],
    ]);
    expect(positions.stdout).toMatch(/attention +.*shown\.json, density 0\.13 at 60 tokens/);
    expect(positions.stdout).toMatch(/60 tokens +perplexity at 95 % +tokens/);
    expect(positions.stdout).toMatch(/0 to 29 +\d.* 58\n +30 to 59 +\d.* 60\n +all +\d.*2 windows/);
  });

  it.each([
    [["--long-context", "retrieval", "--task", task], /either --task .* or --long-context/],
    [[], /either --task .* or --long-context/],
    [["--task", task, "--lengths", "100"], /--lengths is for --long-context/],
    [["--long-context", "retrieval", "--lengths", "200,900"], /900 .* 512/],
    [["--long-context", "retrieval", "--data", text], /--data is no option of --long-context retrieval/],
    [["--long-context", "positions"], /--data <file>/],
    [["--long-context", "positions", "--data", text, "--lengths", "60,513"], /513 .* 512/],
    [["--long-context", "positions", "--data", task], /form "generation", expected texts/],
    [["--long-context", "facts", "--lengths", "40"], /40 tokens is too short/],
  ])("refuses %o", async (words, message) => {
    const { code, stderr } = await coppice(["eval", model, ...words, ...here]);
    expect(stderr).toMatch(message);
    expect(code).toBe(2);
  });
});

describe("--attention", () => {
  const score = async (...words: string[]) =>
    (await coppiceJson(["eval", model, "--task", task, "--metric", "log-likelihood", ...words, ...here]))[
      "value"
    ];

  it("limits eval and generate", async () => {
    const plan = await planFile("narrow");
    const dense = await planFile("dense", { rules: [{ alpha: 0, beta: 1 }] });
    const whole = await score();
    expect(await score("--attention", dense)).toBe(whole);
    expect(await score("--attention", plan)).not.toBe(whole);
    const prompt = ["--prompt", "1 + 1 is what, if not so many more?", "--max-tokens", "12"];
    const write = async (...words: string[]) =>
      (await coppiceJson(["generate", model, ...prompt, "--backend", "reference", ...words]))["tokens"];
    const tokens = await write();
    expect(await write("--attention", dense)).toEqual(tokens);
    expect(await write("--attention", plan)).not.toEqual(tokens);
  });

  it("refuses what does not fit", async () => {
    const other = await planFile("other", {
      model: { ...attentionPlanModel((await loadFixture("mixtral")).model), heads: 8 },
    });
    for (const [words, exit, message] of [
      [["--attention", other], 2, /8 .* 4/],
      [["--attention", join(work, "missing.json")], 2, /does not exist/],
      [["--attention", "flexi"], 3, /no attention plugin is named "flexi"/],
      [["--attention", "sink-window"], 2, /makes plans/],
      [["--attention", "none", "--attention-set", "gamma=1"], 2, /no attention plugin|none is named/],
    ] as const) {
      const { code, stderr } = await coppice(["eval", model, "--task", task, ...words, ...here]);
      expect(stderr).toMatch(message);
      expect(code).toBe(exit);
    }
  });
});

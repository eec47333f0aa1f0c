import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
let model: string;
const [first, second] = [join(work, "first.safetensors"), join(work, "second.safetensors")];

beforeAll(async () => {
  model = copyModel(join(work, "model"));
  const calibrate = (task: string, out: string, ...more: string[]) =>
    coppiceJson(["calibrate", model, "--data", task, "--out", out, ...more]);
  await calibrate(writeTask(join(work, "first.jsonl"), 4), first);
  await calibrate(writeTask(join(work, "second.jsonl"), 3, 50), second, "--kind", "prompts", "--limit", "2");
});

interface Shown {
  tokens: number;
  sources: { name: string; kind: string; tokens: number; weight: number; options: object }[];
  layers: { layer: number; experts: number; unused: number; counts: number[] }[];
}

const show = async (path: string) =>
  (await coppiceJson(["stats", "show", path])) as unknown as Shown & Record<string, unknown>;

describe("stats", () => {
  it("shows what a file holds", async () => {
    const shown = await show(second);
    expect(shown.sources).toMatchObject([
      { name: "second.jsonl", kind: "prompts", weight: 1, options: { limit: 2 } },
    ]);
    expect(shown.tokens).toBe(shown.sources[0]?.tokens);
    expect(shown.layers.map(({ layer, experts }) => [layer, experts])).toEqual([
      [0, 8],
      [1, 8],
      [2, 8],
    ]);
    for (const { counts, unused } of shown.layers) {
      expect(counts.reduce((a, b) => a + b)).toBe(2 * shown.tokens);
      expect(counts.filter((count) => count === 0)).toHaveLength(unused);
    }
    const text = await coppiceHere(["stats", "show", second]);
    expect(text.stdout).toMatch(/^second\.jsonl +prompts +2 +[\d,]+ +1 +.*limit=2$/m);
  });

  it("merges files, with weights", async () => {
    const [a, b] = [await show(first), await show(second)];
    const out = join(work, "both.safetensors");
    const merged = await coppiceJson(["stats", "merge", first, second, "--out", out]);
    expect(merged["tokens"]).toBe(a.tokens + b.tokens);
    const both = await show(out);
    const sums = (weight: number) =>
      a.layers.map(({ counts }, i) =>
        counts.map((count, expert) => count + weight * (b.layers[i]?.counts[expert] as number)),
      );
    expect(both.layers.map(({ counts }) => counts)).toEqual(sums(1));
    const weighted = join(work, "weighted.safetensors");
    await coppiceJson(["stats", "merge", first, second, "--weights", "1,0.5", "--out", weighted]);
    const shown = await show(weighted);
    expect(shown.tokens).toBe(a.tokens + b.tokens / 2);
    expect(shown.sources.map(({ weight }) => weight)).toEqual([1, 0.5]);
    expect(shown.layers.map(({ counts }) => counts)).toEqual(sums(0.5));
    const { scores } = await coppiceJson(["score", model, "--criterion", "frequency", "--stats", weighted]);
    expect(scores).toEqual(sums(0.5));
  });

  it.each([
    [["merge", first], "COPPICE_USAGE"],
    [["merge", first, second], "COPPICE_USAGE"],
    [["merge", first, second, "--weights", "1", "--out", "x"], "COPPICE_USAGE"],
    [["merge", first, second, "--weights", "1,-1", "--out", "x"], "COPPICE_USAGE"],
    [["merge", first, second, "--out", first], "COPPICE_IO_EXISTS"],
    [["merge", first, first, "--out", join(work, "twice")], "COPPICE_USAGE"],
    [["show", first, second], "COPPICE_USAGE"],
    [["show", first, "--out", "x"], "COPPICE_USAGE"],
    [["show", join(work, "first.jsonl")], "COPPICE_STATS_FORMAT"],
    [["list", first], "COPPICE_USAGE"],
  ])("refuses %j", async (words, code) => {
    const finished = await coppiceHere(["stats", ...words, "--json"]);
    expect(finished.code).toBe(2);
    expect(finished.json()).toMatchObject({ error: { code } });
  });
});

describe("score of several criteria", () => {
  it("sets all that can be computed side by side", async () => {
    const card = await coppiceJson(["score", model, "--stats", first]);
    const criteria = card["criteria"] as { criterion: string; scores: number[][]; dropped: Dropped }[];
    expect(criteria.map(({ criterion }) => criterion)).toEqual(
      expect.arrayContaining(["frequency", "reap", "man", "tcess", "aimer", "weight-magnitude"]),
    );
    expect(criteria.map(({ criterion }) => criterion)).not.toContain("random");
    expect(card).not.toHaveProperty("scores");
    const pairs = card["correlations"] as { criteria: string[]; layers: number[]; mean: number }[];
    expect(pairs).toHaveLength((criteria.length * (criteria.length - 1)) / 2);
    for (const { layers, mean } of pairs) {
      expect(layers).toHaveLength(3);
      expect(mean).toBeCloseTo(layers.reduce((a, b) => a + b) / 3, 12);
      for (const value of layers) expect(Math.abs(value)).toBeLessThanOrEqual(1 + 1e-12);
    }
    const least = card["leastDropped"] as Dropped;
    expect(least.overall.map(({ keep }) => keep)).toEqual([2, 3, 4, 5, 6, 7, 8]);
    for (const { dropped } of criteria) {
      dropped.overall.forEach(({ dropped }, i) => {
        expect(dropped).toBeGreaterThanOrEqual((least.overall[i]?.dropped as number) - 1e-12);
      });
    }
    const alone = await coppiceJson(["score", model, "--stats", first, "--criterion", "reap"]);
    expect(alone["scores"]).toEqual(criteria.find(({ criterion }) => criterion === "reap")?.scores);
    expect(alone["correlations"]).toEqual([]);
    const { stdout } = await coppiceHere(["score", model, "--stats", first, "--criterion", "reap,frequency"]);
    expect(stdout).toMatch(/^layer +criterion +expert 0/m);
    expect(stdout).toMatch(/^frequency +-?\d\.\d\d +1$/m);
    expect(stdout).toMatch(/^the least possible +[\d.]+ %/m);
  });

  it("adds criteria that need more where the file has it", async () => {
    const more = join(work, "more.safetensors");
    const words = ["calibrate", model, "--data", join(work, "first.jsonl"), "--out", more];
    await coppiceJson([...words, "--with", "change,peak"]);
    const finished = await coppiceHere(["score", model, "--stats", more, "--json"]);
    const { criteria } = finished.json() as { criteria: { criterion: string }[] };
    const names = criteria.map(({ criterion }) => criterion);
    expect(names).toEqual(expect.arrayContaining(["reap", "easy-ep", "super-experts"]));
    expect(names).not.toContain("mone");
    expect(finished.stderr).toMatch(/Left out: mone\b/);
    expect(finished.stderr).toMatch(/--with outputSum,outputNorm2\b/);
    const missing = await coppiceHere(["score", model, "--stats", first, "--criterion", "easy-ep", "--json"]);
    expect(missing.json()).toMatchObject({ error: { code: "COPPICE_STATS_MISSING" } });
    const direct = ["score", model, "--data", join(work, "first.jsonl"), "--criterion"];
    const { scores } = await coppiceJson([...direct, "easy-ep"]);
    const { scores: fromFile } = await coppiceJson([
      "score",
      model,
      "--stats",
      more,
      "--criterion",
      "easy-ep",
    ]);
    expect(scores).toEqual(fromFile);
    expect((await coppiceHere([...words, "2", "--with", "peaks"])).code).toBe(2);
  });

  it("needs no data for criteria of weights", async () => {
    const finished = await coppiceHere(["score", model, "--json"]);
    const { criteria } = finished.json() as { criteria: { criterion: string }[] };
    expect(criteria.map(({ criterion }) => criterion)).toEqual(["weight-magnitude", "aimer"]);
    expect(finished.stderr).toMatch(/--stats or --data/);
  });

  it("names experts that no token reached", async () => {
    const short = join(work, "short.safetensors");
    const data = writeTask(join(work, "short.jsonl"), 1);
    const words = ["calibrate", model, "--data", data, "--out", short, "--kind", "prompts"];
    const made = await coppiceHere([...words, "--json"]);
    const unused = made.json()["unused"] as { layer: number; experts: number[] }[];
    const scored = await coppiceHere(["score", model, "--stats", short, "--criterion", "reap", "--json"]);
    expect(scored.json()["unused"]).toEqual(unused);
    expect(unused.length).toBeGreaterThan(0);
    const [{ layer, experts } = { layer: -1, experts: [] }] = unused;
    for (const { stderr } of [made, scored]) expect(stderr).toContain(`layer ${layer}: ${experts.join(" ")}`);
    const scores = scored.json()["scores"] as number[][];
    for (const expert of experts) expect(scores[layer]?.[expert]).toBe(0);
  });

  it.each([
    ["twice the same", ["--criterion", "reap,reap"]],
    ["none", ["--criterion", ","]],
    ["options for several", ["--criterion", "ean,moments", "--set", "over=mean"]],
  ])("refuses %s", async (_, words) => {
    const finished = await coppiceHere(["score", model, "--stats", first, ...words, "--json"]);
    expect(finished.json()).toMatchObject({ error: { code: "COPPICE_USAGE" } });
  });
});

interface Dropped {
  overall: { keep: number; dropped: number }[];
}

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

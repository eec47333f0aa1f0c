import { join } from "node:path";
import { extraFields, highest } from "@coppice/core";
import { beforeAll, describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
let model: string;
const first = join(work, "first.safetensors");

beforeAll(async () => {
  model = copyModel(join(work, "model"));
  await coppiceJson(["calibrate", model, "--data", writeTask(join(work, "first.jsonl"), 4), "--out", first]);
});

interface Card {
  keep?: number;
  criteria: { criterion: string; scores: number[][]; dropped: Dropped }[];
}

interface Dropped {
  overall: { keep: number; dropped: number }[];
}

describe("score", () => {
  it("sets all that can be computed side by side", async () => {
    const card = await coppiceJson(["score", model, "--stats", first]);
    const criteria = card["criteria"] as Card["criteria"];
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
    expect(stdout).toMatch(/^ *2 +frequency +-?\d\.\d\d +1$/m);
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
    expect(finished.stderr).toContain("Left out: mone, naee, heapr-lite.");
    expect(finished.stderr).toContain(
      "`coppice calibrate --with outputSum,outputNorm2,unitSquares --sample logits,grams`",
    );
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

  it("lets criteria choose sets of the size that is wanted", async () => {
    const whole = join(work, "whole.safetensors");
    await coppiceJson([
      ...["calibrate", model, "--data", join(work, "first.jsonl"), "--out", whole],
      ...["--with", extraFields.join(","), "--sample", "logits,grams", "--sample-tokens", "40"],
    ]);
    const scored = await coppiceHere(["score", model, "--stats", whole, "--keep", "3", "--json"]);
    expect(scored.stderr).not.toContain("Left out");
    const { criteria, keep } = scored.json() as unknown as Card;
    expect(keep).toBe(3);
    for (const { dropped } of criteria) expect(dropped.overall).toHaveLength(7);
    const naee = criteria.find(({ criterion }) => criterion === "naee");
    const exact = ["score", model, "--stats", whole, "--criterion", "naee", "--set", "method=exact"];
    const { scores } = await coppiceJson([...exact, "--keep", "3"]);
    expect(naee?.scores).toEqual(scores);
    expect((await coppiceHere([...exact, "--json"])).json()).toMatchObject({
      error: { code: "COPPICE_USAGE" },
    });
    const few = await coppiceHere([...exact, "--keep", "1", "--json"]);
    expect(few.json()).toMatchObject({ error: { code: "COPPICE_PLAN_KEEP" } });
    // What is pruned is what was scored for so many.
    const pruned = await coppiceJson([
      ...["prune", model, "--keep", "3", "--criterion", "naee", "--stats", whole],
      ...["--out", join(work, "pruned"), "--dry-run"],
    ]);
    const { layers } = pruned["plan"] as { layers: { experts: number[] }[] };
    expect(layers.map(({ experts }) => experts)).toEqual(
      (scores as number[][]).map((row) => highest(row, 3)),
    );
  });

  it("collects the sample that a criterion needs", async () => {
    const direct = [
      "score",
      model,
      "--data",
      join(work, "first.jsonl"),
      "--criterion",
      "naee,heapr-lite,reap",
    ];
    const { criteria } = await coppiceJson(direct);
    expect((criteria as Card["criteria"]).map(({ criterion }) => criterion)).toEqual([
      "naee",
      "heapr-lite",
      "reap",
    ]);
    const missing = await coppiceHere([
      "score",
      model,
      "--stats",
      first,
      "--criterion",
      "reap,naee",
      "--json",
    ]);
    expect(missing.json()).toMatchObject({
      error: { code: "COPPICE_STATS_MISSING", hint: expect.stringContaining("--sample logits,grams") },
    });
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

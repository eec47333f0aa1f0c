import {
  type AttentionMethod,
  type AttentionPlan,
  type AttentionPlanRequest,
  type AttentionSample,
  attentionPlanModel,
  type ChoiceProgram,
  type ChoiceSolution,
  createRegistry,
  type MoeModel,
  parseAttentionPlan,
  Rng,
  RunEmitter,
  spanDensity,
} from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, it } from "vitest";
import { duoHeads, moaSpan, sinkWindow } from "../src/index.js";
import { load, randomTokens } from "./sample.js";

const registry = createRegistry([sinkWindow, moaSpan, duoHeads]);
const lengths = [32, 64];

function method(name: string, options: Readonly<Record<string, unknown>> = {}): Promise<AttentionMethod> {
  return registry.create("attention", name, options, undefined);
}

function request(model: MoeModel, density: number, more: Partial<AttentionPlanRequest> = {}) {
  return { model, lengths, density, rng: Rng.fromSeed(1), ...more };
}

function samples(model: MoeModel, of: readonly number[]): AttentionSample[] {
  return of.map((length, i) => ({ tokens: randomTokens(model, length, i), responseFrom: length - 8 }));
}

function expectWithin(plan: AttentionPlan, model: MoeModel, density: number, used = 0.8) {
  expect(parseAttentionPlan(JSON.parse(JSON.stringify(plan)), model)).toEqual(plan);
  const densities = lengths.map((length) => spanDensity(plan, length));
  for (const own of densities) expect(own).toBeLessThanOrEqual(density + 1e-9);
  expect(Math.max(...densities)).toBeGreaterThan(density * used);
}

describe("sink-window", () => {
  it.each([1, 0.5, 0.33, 0.25])("gives all heads the same share, density %d", async (density) => {
    const { model } = randomModel({ layers: 3 });
    const { plan } = await method("sink-window", { blockSize: 4 });
    const made = await plan?.(request(model, density));
    expectWithin(made as AttentionPlan, model, density);
    expect(made?.rules).toHaveLength(1);
  });

  it("gives layers that slide already what they have", async () => {
    const { model } = randomModel({ layers: 3, slidingWindow: 8, slidingLayers: [1] });
    const { plan } = await method("sink-window", { blockSize: 4 });
    const made = await plan?.(request(model, 0.5));
    expect(made?.layers[1]).toBeNull();
    expectWithin(made as AttentionPlan, model, 0.5);
  });

  it("refuses what cannot be, with both numbers", async () => {
    const { model } = randomModel({ layers: 2 });
    const { plan } = await method("sink-window", { sinks: 20 });
    await expect(plan?.(request(model, 0.5))).rejects.toThrow(
      /density of 0.5 is asked for at 32 tokens; the least possible is 1.0000: 20 sinks/,
    );
    await expect(plan?.({ ...request(model, 0.5), lengths: [64, 1024] })).rejects.toThrow(
      /1024 tokens is asked for; the model has 256 positions/,
    );
    const latent = randomModel({ latent: { rank: 8, nopeDim: 4, rotaryDim: 4, valueDim: 4 } });
    await expect(plan?.(request(latent.model, 0.5))).rejects.toThrow(/multi-head latent attention/);
  });
});

describe("moa-span", () => {
  it("chooses rules within the density and tells what it knows of them", async () => {
    const source = randomModel({ layers: 3, slidingWindow: 8, slidingLayers: [1], theta: 100 });
    const { model, weights } = source;
    await using runner = await load(source);
    const { plan, estimate } = await method("moa-span", {
      ...{ blockSize: 4, sinks: 2, rows: 16, checks: 5, probeTexts: 1 },
    });
    const emitter = new RunEmitter();
    const stages = new Set<string>();
    emitter.on("progress", ({ stage }) => stages.add(stage));
    const full = request(model, 0.6, {
      ...{ runner, weights, emitter },
      samples: samples(model, [30, 64, 60]),
      validation: samples(model, [24, 48]),
    });
    const told = estimate?.(full);
    expect(told?.bytes).toBeGreaterThan(0);
    expect(told?.tokenLayers).toBeGreaterThan(3 * 154);
    const made = (await plan?.(full)) as AttentionPlan;
    expectWithin(made, model, 0.6);
    expect(made.layers[1]).toBeNull();
    const report = made.report as {
      solver: { loss: number; bound: number };
      front: { losses: number[]; responseLoss: number }[];
      decisions: { predicted: number; measured: number }[];
      validation: { length: number; plan: { loss: number } };
    };
    expect(report.solver.bound).toBeLessThanOrEqual(report.solver.loss);
    expect(report.decisions).toHaveLength(5);
    for (const { predicted, measured } of report.decisions) {
      expect(predicted).toBeGreaterThan(0);
      expect(measured).toBeGreaterThan(0);
    }
    // The chosen plan is the one that loses least, at the lengths of the profile and at those of the validation together.
    const total = ({ losses, responseLoss }: (typeof report.front)[number]) =>
      losses.reduce((sum, loss) => sum + loss, 0) / losses.length + responseLoss;
    const [first] = report.front;
    expect(report.front.map(total)).toEqual(report.front.map(total).sort((a, b) => a - b));
    expect(report.validation.plan.loss).toBe(first?.responseLoss);
    expect(report.validation.length).toBe(48);
    expect(stages).toContain("profiling attention");
  });

  it("lets another solver choose", async () => {
    const source = randomModel({ layers: 2, theta: 100 });
    await using runner = await load(source);
    const { plan } = await method("moa-span", {
      blockSize: 4,
      sinks: 2,
      rows: 16,
      checks: 0,
      rulesPerLayer: 1,
    });
    const seen: ChoiceProgram[] = [];
    // All heads get the first rule, which is the shortest.
    const solve = (program: ChoiceProgram): ChoiceSolution => {
      seen.push(program);
      const groups = program.groups.map(({ units }) => units.map(() => 0));
      return { groups, loss: 1, bound: 0.5, optimal: false };
    };
    const given = {
      runner,
      weights: source.weights,
      samples: samples(source.model, [30, 64]),
      solver: { solve },
    };
    const made = await plan?.(request(source.model, 0.6, given));
    expect(made?.report?.["solver"]).toEqual({ loss: 1, bound: 0.5, optimal: false });
    expect(made?.rules).toHaveLength(1);
    const [{ groups, budgets } = { groups: [], budgets: [] }] = seen;
    expect(groups.map(({ units, different }) => [units.length, different])).toEqual([
      [2, 1],
      [2, 1],
    ]);
    expect(budgets).toEqual([Math.floor(0.6 * 4 * 32), Math.floor(0.6 * 4 * 64)]);
    // What options cost is what heads see at each length.
    const [first] = groups[0]?.units[0] ?? [];
    expect(first?.costs).toEqual([4, 4]);
  });

  it("stops when it is told to, and says which samples are missing", async () => {
    const source = randomModel({ layers: 2 });
    const { model, weights } = source;
    await using runner = await load(source);
    const { plan } = await method("moa-span", { blockSize: 4, sinks: 2 });
    const texts = samples(model, [30, 64]);
    const aborted = request(model, 0.6, {
      ...{ runner, weights, samples: texts, signal: AbortSignal.abort() },
    });
    await expect(plan?.(aborted)).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
    await expect(
      plan?.(request(model, 0.6, { runner, weights, samples: texts.slice(0, 1) })),
    ).rejects.toThrow(/no sample has more than 32 and at most 64 tokens/);
    await expect(plan?.(request(model, 0.6, { samples: texts }))).rejects.toThrow(/needs a runner/);
  });
});

describe("duo-heads", () => {
  const { model, weights } = randomModel({ layers: 3, theta: 100 });
  const { kvHeads } = attentionPlanModel(model);
  const options = { blockSize: 4, sinks: 2, recent: 6 };

  it("keeps the heads that lose most by streaming", async () => {
    await using runner = await load({ model, weights });
    const { plan } = await method("duo-heads", options);
    const made = await plan?.(request(model, 0.6, { runner, weights, samples: samples(model, [32, 64]) }));
    expectWithin(made as AttentionPlan, model, 0.6, 0.6);
    const { scores, full } = (made as AttentionPlan).report as { scores: number[]; full: number };
    expect(full).toBeGreaterThan(0);
    const order = [...scores.keys()].sort((a, b) => (scores[b] as number) - (scores[a] as number));
    const dense = made?.layers.flatMap((rules) => rules?.map((rule) => made.rules[rule]?.beta === 1) ?? []);
    expect(order.slice(0, full).every((head) => dense?.[head])).toBe(true);
    expect(dense?.filter(Boolean)).toHaveLength(full);
  });

  it("counts what heads are worth, unless told not to", async () => {
    await using runner = await load({ model, weights });
    const full = request(model, 0.6, { runner, weights, samples: samples(model, [32, 64]) });
    const scores = async (sensitivity?: string) => {
      const { plan, estimate } = await method("duo-heads", {
        ...options,
        ...(sensitivity && { sensitivity }),
      });
      const made = await plan?.(full);
      return { of: made?.report?.["scores"] as number[], told: estimate?.(full) };
    };
    const [weighted, plain] = [await scores(), await scores("none")];
    const factors = weighted.of.map((score, head) => score / (plain.of[head] as number));
    expect(Math.max(...factors)).toBeGreaterThan(1.1 * Math.min(...factors));
    for (const { of } of [weighted, plain])
      expect(of.reduce((sum, score) => sum + score, 0)).toBeCloseTo(1, 1);
    expect(weighted.told?.tokenLayers).toBeGreaterThan(plain.told?.tokenLayers as number);
  });

  it("takes published patterns", async () => {
    // Two of six heads can see all of 32 tokens when the others see 8: 2 * 32 + 4 * 8 <= 0.6 * 6 * 32.
    const rows = model.layers.map((_, layer) =>
      Array.from({ length: kvHeads }, (_, head) => (layer + head === 2 ? "0.98" : "0.1")).join("\t"),
    );
    const { plan, needs } = await method("duo-heads", { ...options, pattern: `${rows.join("\n")}\n` });
    expect(needs).toEqual({ runner: false, weights: false, samples: false });
    const made = await plan?.(request(model, 0.6));
    expect(made?.layers.map((heads) => heads?.map((rule) => made.rules[rule]?.beta))).toEqual(
      model.layers.map((_, layer) =>
        Array.from({ length: kvHeads }, (_, head) => Number(layer + head === 2)),
      ),
    );
    const other = await method("duo-heads", { ...options, pattern: rows.slice(1).join("\n") });
    await expect(other.plan?.(request(model, 0.6))).rejects.toThrow(
      /is for 2 layers of 2 KV heads.*has 3 of 2/,
    );
    const broken = await method("duo-heads", { ...options, pattern: "0.5\tx" });
    await expect(broken.plan?.(request(model, 0.6))).rejects.toThrow(/line 1 has "x"/);
  });
});

import {
  type Candidate,
  createPlan,
  definePlugin,
  type MoeModel,
  moeLayers,
  type Plan,
  type PluginDefinition,
  parsePlan,
  Rng,
  type Scored,
  type SearchContext,
} from "@coppice/core";
import { searchConformance, separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";

interface Options {
  keep: number;
}

declare module "@coppice/core" {
  interface SearchPlugins {
    "test-climber": Options;
  }
}

/** Ways to break the contract, each in one place of a search that is right otherwise. */
type Fault =
  | "other randomness"
  | "seed ignored"
  | "limit ignored"
  | "keeps too many"
  | "invalid plan"
  | "no origin"
  | "lost by JSON"
  | "looks at cached"
  | "throws on failures"
  | "throws when all fail"
  | "never improves"
  | "lenient options"
  | "changes its results"
  | "unknown rival"
  | "throws on lost races";

const schema: PluginDefinition<"search", "test-climber", Options, Options>["options"] = {
  "~standard": {
    version: 1,
    vendor: "test",
    validate: (value) => {
      const extra = Object.keys(value as object).filter((key) => key !== "keep");
      return extra.length > 0 ? { issues: [{ message: `unknown ${extra}` }] } : { value: value as Options };
    },
  },
};
const lenient: typeof schema = {
  "~standard": { version: 1, vendor: "test", validate: (value) => ({ value: value as Options }) },
};

let otherRandomness = 0;

function climber(fault?: Fault) {
  return definePlugin({
    kind: "search",
    name: "test-climber",
    contract: 1,
    summary: "A search for tests of the suite.",
    options: fault === "lenient options" ? lenient : schema,
    create: ({ keep }, context) => createClimber(keep, context, fault),
  });
}

function createClimber(keep: number, context: SearchContext, fault?: Fault) {
  const { model } = context;
  const rng =
    fault === "seed ignored"
      ? Rng.fromSeed(9)
      : fault === "other randomness"
        ? Rng.fromSeed(otherRandomness++)
        : context.rng;
  let best: { plan: Plan; fitness: number; key: string } | undefined;
  let asked: Candidate[] = [];
  const plan = () => {
    const count = fault === "keeps too many" ? keep + 1 : keep;
    return createPlan(
      model,
      moeLayers(model).map(({ index }, i) => {
        const fresh = rng.sample(6, count);
        const experts = best && rng.bernoulli(0.6) ? (best.plan.layers[i]?.experts ?? fresh) : fresh;
        const layer = { layer: fault === "invalid plan" ? 0 : index, experts };
        // A typed array is an object after JSON.
        const merge = Float64Array.from({ length: 6 }, () => 0.25) as unknown as number[];
        return fault === "lost by JSON" ? { ...layer, merge: experts.map(() => merge) } : layer;
      }),
    );
  };
  return {
    ask(limit: number): readonly Candidate[] {
      if (fault === "never improves" && best) return [];
      const count = fault === "limit ignored" ? limit + 1 : fault === "never improves" ? 1 : limit;
      const origin = fault === "no origin" ? "" : "climb";
      const rival = fault === "unknown rival" ? "nobody" : best?.key;
      const raced = rival === undefined ? {} : { rival };
      asked = Array.from({ length: count }, () => ({ plan: plan(), phase: "prune", origin, ...raced }));
      return asked;
    },
    tell(results: readonly Scored[]): void {
      if (fault === "throws on lost races" && results.some(({ samples }) => samples)) throw new Error("lost");
      const failed = results.filter((result) => result.fitness === Number.NEGATIVE_INFINITY).length;
      if (fault === "throws on failures" && failed > 0 && failed < results.length)
        throw new Error("no score");
      if (fault === "throws when all fail" && failed === results.length) throw new Error("no score at all");
      if (fault === "changes its results") (results as Scored[]).sort((a, b) => b.fitness - a.fitness);
      results.forEach((result, i) => {
        if (fault === "looks at cached" && result.cached) return;
        if (!best || result.fitness > best.fitness) {
          best = { plan: (asked[i] as Candidate).plan, fitness: result.fitness, key: result.key };
        }
      });
    },
  };
}

async function failures(fault?: Fault): Promise<string[]> {
  const failed: string[] = [];
  for (const { name, run } of searchConformance(climber(fault), { keep: 3 })) {
    await run().catch((error: Error) => failed.push(`${name}: ${error.message}`));
  }
  return failed;
}

describe("the suite", () => {
  test("passes a search that keeps the contract", async () => {
    expect(await failures()).toEqual([]);
  });

  test.each([
    ["other randomness", "same plans for the same seed"],
    ["seed ignored", "other plans for another seed"],
    ["limit ignored", "at most as many plans as asked for: ask(1) returned 2"],
    ["keeps too many", "keeps 3 experts"],
    ["invalid plan", "valid plans"],
    ["no origin", "origin is"],
    ["lost by JSON", "survive JSON"],
    ["looks at cached", "does not look at `cached`"],
    ["throws on failures", "goes on when candidates fail: no score"],
    ["throws when all fail", "every candidate fails: no score at all"],
    ["never improves", "better plan than its first"],
    ["lenient options", "refuses an unknown option"],
    ["changes its results", "Cannot assign to read only"],
    ["unknown rival", 'names the rival "nobody"'],
    ["throws on lost races", "goes on when candidates lose races: lost"],
  ] as [Fault, string][])("finds the fault: %s", async (fault, text) => {
    const found = await failures(fault);
    expect(found.join("\n")).toContain(text);
  });
});

describe("toys", () => {
  const model: MoeModel = toyModel({ layers: 2, experts: 5 });
  const { fitness, values, optimum } = separableLandscape(model, 4);
  const keep = (first: number[], second: number[]) =>
    parsePlan(
      createPlan(model, [
        { layer: 1, experts: first },
        { layer: 2, experts: second },
      ]),
      model,
    );

  test("the optimum is that of trying every plan", () => {
    const pairs = [0, 1, 2, 3, 4].flatMap((a) => [0, 1, 2, 3, 4].filter((b) => b > a).map((b) => [a, b]));
    const all = pairs.flatMap((first) => pairs.map((second) => fitness(keep(first, second))));
    expect(Math.max(...all)).toBeCloseTo(optimum(2), 12);
    expect(fitness(createPlan(model))).toBeCloseTo(fitness(keep([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])), 12);
  });

  test("merging pays in the direction of an expert's value and no further than it", () => {
    const value = values[0]?.[3] as number;
    const merged = (step: number) =>
      fitness(
        createPlan(model, [
          {
            layer: 1,
            experts: [0, 1],
            merge: [
              [1, 0, 0, step, 0],
              [0, 1, 0, 0, 0],
            ],
          },
        ]),
      );
    expect(merged(0)).toBeCloseTo(fitness(createPlan(model, [{ layer: 1, experts: [0, 1] }])), 12);
    expect(merged(value)).toBeGreaterThan(merged(0));
    expect(merged(value)).toBeGreaterThan(merged(value * 1.2));
    expect(merged(value)).toBeGreaterThan(merged(value * 0.8));
  });

  test("the executor's samples differ and their mean is the fitness", async () => {
    const executor = toyExecutor(fitness, { samples: 5 });
    const plan = keep([0, 1], [2, 3]);
    const [result] = await executor.evaluate([plan]);
    const scores = [...(result?.scores ?? [])];
    expect(new Set(scores).size).toBe(5);
    expect(scores.reduce((a, b) => a + b) / 5).toBeCloseTo(fitness(plan), 12);
    expect(executor.evaluated).toEqual([plan]);
    await expect(executor.evaluate([plan], { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
  });
});

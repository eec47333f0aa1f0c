import {
  type Candidate,
  isCoppiceError,
  type MoeModel,
  moeLayers,
  type OptionsOf,
  type Plan,
  type Plugin,
  parsePlan,
  planKey,
  Rng,
  type Scored,
} from "@coppice/core";
import type { ConformanceCase } from "./conformance-case.js";
import { type Landscape, separableLandscape, toyModel } from "./search-toys.js";

export interface SearchConformanceSettings {
  /** Experts that every layer of every plan that is no probe must keep; null when the strategy decides. Default `options.keep`. */
  readonly keep?: number | null;
  /** Model that is searched. Default `toyModel()`: one dense layer, then 3 layers of 6 experts, top-k 2. */
  readonly model?: MoeModel;
  /** Criterion name -> scores, as in `SearchContext`. Default: none. */
  readonly scores?: ReadonlyMap<string, readonly Float64Array[]>;
  /** Plans that one run evaluates. Default 120. */
  readonly evaluations?: number;
  /** False for a strategy that uses no chance. Default true: another seed must give another search. */
  readonly random?: boolean;
  /** False for a strategy that proposes one plan. Default true: the best plan must beat the first one. */
  readonly improves?: boolean;
}

/** Asks in a row without an unknown plan after which the suite ends a run, as the engine does. */
const idleAsks = 1000;

interface Run {
  /** Everything proposed, in order. */
  readonly proposals: readonly Candidate[];
  /** What was told, in the order of `proposals`. */
  readonly results: readonly Scored[];
}

interface RunOptions {
  readonly seed?: number;
  readonly limit?: number;
  /** Value of `Scored.cached` in everything told; absent: the truth. */
  readonly cached?: boolean;
  /** Results that fail, by the number of the evaluation. */
  readonly fails?: (evaluation: number) => boolean;
  /** True to stop candidates early that are worse than their rival. */
  readonly races?: boolean;
}

/**
 * Checks that a search plugin keeps its contract. `options` are what a user would give; they must suit the model of
 * the settings.
 *
 * @example
 * for (const { name, run } of searchConformance(hillClimb, { keep: 3 })) test(name, run);
 */
export function searchConformance<N extends string>(
  plugin: Plugin<"search", N>,
  options: OptionsOf<"search", N>,
  settings: SearchConformanceSettings = {},
): ConformanceCase[] {
  const model = settings.model ?? toyModel();
  const evaluations = settings.evaluations ?? 120;
  const keep = settings.keep === undefined ? keepOf(options) : settings.keep;
  const { fitness: landscape, optimum } = separableLandscape(model);
  const scores = settings.scores ?? new Map();

  const search = async (run: RunOptions = {}): Promise<Run> => {
    const context = { model, rng: Rng.fromSeed(run.seed ?? 1), evaluations, scores };
    const strategy = await plugin.create(structuredClone(options), Object.freeze(context));
    return drive(strategy, { model, landscape, evaluations, ...run });
  };

  const cases: ConformanceCase[] = [
    {
      name: "proposes the same plans for the same seed",
      run: async () => expectSame(await search(), await search(), "a second run with the same seed"),
    },
    {
      name: "proposes valid plans that survive JSON",
      run: async () => {
        for (const { plan, phase, origin } of (await search()).proposals)
          checkPlan(plan, model, phase, origin);
      },
    },
    {
      name: "proposes at most as many plans as asked for",
      run: async () => {
        for (const limit of [1, 3, 8]) {
          const proposals = (await search({ limit })).proposals.filter((candidate) => !candidate.probe);
          expect(proposals.length > 0, `nothing but probes was proposed with ask(${limit})`);
        }
      },
    },
    {
      name: "does not look at `cached`, so that a resumed run goes the same way",
      run: async () => {
        const first = await search();
        expectSame(first, await search({ cached: true }), "a run told that everything is cached");
        expectSame(first, await search({ cached: false }), "a run told that nothing is cached");
      },
    },
    {
      name: "goes on when candidates fail",
      run: async () => {
        const { proposals } = await search({ fails: (evaluation) => evaluation % 3 === 0 });
        for (const { plan, phase, origin } of proposals) checkPlan(plan, model, phase, origin);
      },
    },
    {
      name: "ends or goes on, but does not throw, when every candidate fails",
      run: async () => {
        await search({ fails: () => true });
      },
    },
    {
      name: "goes on when candidates lose races",
      run: async () => {
        const { proposals } = await search({ races: true });
        for (const { plan, phase, origin } of proposals) checkPlan(plan, model, phase, origin);
      },
    },
    {
      name: "refuses an unknown option",
      run: async () => {
        const misspelt = { ...(options as object), "no-such-option": 1 };
        const context = { model, rng: Rng.fromSeed(1), evaluations, scores };
        const error = await plugin.create(misspelt, context).then(
          () => undefined,
          (reason: unknown) => reason,
        );
        expect(
          isCoppiceError(error, "COPPICE_PLUGIN_OPTIONS"),
          `the option "no-such-option" gave ${error === undefined ? "no error" : String(error)}, expected ` +
            "COPPICE_PLUGIN_OPTIONS: use a strict schema, so that a misspelt option is not a silent no-op",
        );
      },
    },
  ];
  if (keep !== null) {
    cases.push({
      name: `keeps ${keep} experts in every layer of every plan that is no probe`,
      run: async () => {
        const results = (await search()).proposals.filter((candidate) => !candidate.probe);
        expect(results.length > 0, "every plan was a probe, so that there is nothing to choose");
        for (const { plan, origin } of results) checkKept(plan, model, keep, origin);
      },
    });
  }
  if (settings.random ?? true) {
    cases.push({
      name: "proposes other plans for another seed",
      run: async () => {
        const texts = [await search({ seed: 1 }), await search({ seed: 2 })].map((run) =>
          JSON.stringify(run.proposals),
        );
        expect(texts[0] !== texts[1], "seeds 1 and 2 gave the same proposals; draw from context.rng");
      },
    });
  }
  if (settings.improves ?? true) {
    cases.push({
      name: "finds a better plan than its first on an easy landscape",
      run: async () => {
        const results = (await search()).results.filter((result) => !result.candidate.probe);
        const fitness = results.map((result) => result.fitness);
        const best = Math.max(...fitness);
        // A first plan that is the optimum already leaves nothing to find.
        if (keep !== null && (fitness[0] as number) >= optimum(keep) - 1e-9) return;
        expect(
          best > (fitness[0] as number),
          `the best of ${fitness.length} plans scored ${best}, no more than the first`,
        );
      },
    });
  }
  return cases;
}

/** The engine's loop in its plainest form, checking what every ask must hold. */
function drive(
  strategy: Awaited<ReturnType<Plugin<"search">["create"]>>,
  options: RunOptions & { model: MoeModel; landscape: Landscape; evaluations: number },
): Run {
  const { model, landscape, evaluations, limit = 8, fails, races = false } = options;
  const known = new Map<string, number>();
  /** Fitness of plans that were told in full. */
  const rivals = new Map<string, number>();
  const proposals: Candidate[] = [];
  const results: Scored[] = [];
  for (let idle = 0; known.size < evaluations && idle < idleAsks; idle++) {
    const asked = Math.min(limit, evaluations - known.size);
    const candidates = strategy.ask(asked);
    expect(candidates.length <= asked, `ask(${asked}) returned ${candidates.length} candidates`);
    if (candidates.length === 0) break;
    const told = candidates.map((candidate): Scored => {
      const { plan, phase, origin } = candidate;
      checkText(phase, "phase");
      checkText(origin, "origin");
      parsePlan(plan, model);
      rivalOf(candidate, rivals);
      const key = planKey(plan, model);
      const cached = known.has(key);
      if (!cached) {
        idle = 0;
        known.set(key, fails?.(known.size) ? Number.NEGATIVE_INFINITY : landscape(plan));
      }
      const fitness = known.get(key) as number;
      const failed = fitness === Number.NEGATIVE_INFINITY;
      const lost = races && !failed && fitness < (rivalOf(candidate, rivals) ?? Number.NEGATIVE_INFINITY);
      return Object.freeze({
        candidate,
        key,
        fitness,
        scores: failed || lost ? new Float64Array(0) : Float64Array.of(fitness, fitness),
        ...(lost && { samples: 1 }),
        ...(!failed && !lost && { accuracy: fitness }),
        cached: options.cached ?? cached,
      });
    });
    for (const { key, fitness, samples } of told) if (samples === undefined) rivals.set(key, fitness);
    proposals.push(...candidates);
    results.push(...told);
    strategy.tell(Object.freeze(told));
  }
  return { proposals, results };
}

/** Fitness of the plan that a candidate must beat. */
function rivalOf({ rival, origin }: Candidate, told: ReadonlyMap<string, number>): number | undefined {
  if (rival === undefined) return undefined;
  expect(
    told.has(rival),
    `a candidate (${origin}) names the rival "${rival}", which was not told before with all its scores`,
  );
  return told.get(rival);
}

function checkPlan(plan: Plan, model: MoeModel, phase: string, origin: string): void {
  const text = JSON.stringify(plan);
  const back: unknown = JSON.parse(text);
  const again = parsePlan(back, model);
  expect(
    planKey(again, model) === planKey(plan, model),
    `a plan (${phase}, ${origin}) is another one after JSON: ${text.slice(0, 200)}`,
  );
}

function checkKept(plan: Plan, model: MoeModel, keep: number, origin: string): void {
  const kept = new Map(plan.layers.map((layer) => [layer.layer, layer.experts.length]));
  for (const layer of moeLayers(model)) {
    const count = kept.get(layer.index) ?? layer.feedForward.experts.length;
    expect(
      count === keep,
      `a plan (${origin}) keeps ${count} experts in layer ${layer.index}, expected ${keep}`,
    );
  }
}

function checkText(value: unknown, field: string): void {
  expect(
    typeof value === "string" && value !== "",
    `a candidate's ${field} is ${JSON.stringify(value)}, expected a word`,
  );
}

function expectSame(a: Run, b: Run, what: string): void {
  const texts = [a, b].map((run) => run.proposals.map((candidate) => JSON.stringify(candidate)));
  const [first, second] = texts as [string[], string[]];
  const differing = first.findIndex((text, i) => text !== second[i]);
  const at = differing < 0 && first.length !== second.length ? first.length : differing;
  expect(
    at < 0,
    `proposal ${at} of ${what} differs: ${second[at]?.slice(0, 200)}, before ${first[at]?.slice(0, 200)}`,
  );
}

function keepOf(options: unknown): number | null {
  const keep = (options as { keep?: unknown } | undefined)?.keep;
  return typeof keep === "number" ? keep : null;
}

function expect(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(message);
}

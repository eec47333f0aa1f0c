import {
  type Candidate,
  createPlan,
  type MoeModel,
  moeLayers,
  type Plan,
  Rng,
  type Scored,
  type SearchStrategy,
} from "@coppice/core";
import type { SearchResult } from "../src/index.js";

/** The plan that keeps these experts in every MoE layer. */
export function keepEverywhere(model: MoeModel, experts: readonly number[]): Plan {
  return createPlan(
    model,
    moeLayers(model).map((layer) => ({ layer: layer.index, experts })),
  );
}

/** A strategy that proposes a fixed list, `perAsk` at a time, and records what it is told. */
export class FixedStrategy implements SearchStrategy {
  readonly told: Scored[] = [];
  readonly limits: number[] = [];
  readonly #plans: Plan[];
  readonly #perAsk: number;

  constructor(plans: readonly Plan[], perAsk = Number.POSITIVE_INFINITY) {
    this.#plans = [...plans];
    this.#perAsk = perAsk;
  }

  ask(limit: number): readonly Candidate[] {
    this.limits.push(limit);
    return this.#plans
      .splice(0, Math.min(limit, this.#perAsk))
      .map((plan, i) => ({ plan, phase: "test", origin: `fixed ${i}` }));
  }

  tell(results: readonly Scored[]): void {
    this.told.push(...results);
  }
}

/** A small adaptive search whose course depends on every result and that often repeats itself. */
export class Climber implements SearchStrategy {
  readonly #model: MoeModel;
  readonly #keep: number;
  readonly #rng: Rng;
  #best: { subsets: number[][]; fitness: number } | undefined;
  #asked: number[][][] = [];

  constructor(model: MoeModel, seed: number, keep = 3) {
    this.#model = model;
    this.#keep = keep;
    this.#rng = Rng.fromSeed(seed);
  }

  ask(limit: number): readonly Candidate[] {
    const layers = moeLayers(this.#model);
    const fresh = () => layers.map((layer) => this.#rng.sample(layer.feedForward.experts.length, this.#keep));
    this.#asked = Array.from({ length: limit }, () => {
      if (!this.#best) return fresh();
      return this.#best.subsets.with(this.#rng.integer(layers.length), this.#rng.pick(fresh()));
    });
    return this.#asked.map((subsets) => ({
      plan: createPlan(
        this.#model,
        layers.map((layer, i) => ({ layer: layer.index, experts: subsets[i] as number[] })),
      ),
      phase: "climb",
      origin: "swap",
    }));
  }

  tell(results: readonly Scored[]): void {
    results.forEach(({ fitness }, i) => {
      if (this.#best && fitness <= this.#best.fitness) return;
      this.#best = { subsets: this.#asked[i] as number[][], fitness };
    });
  }
}

/** Everything of a result that a resumed run must share with an uninterrupted one. */
export function comparable(result: SearchResult): unknown {
  const { replayed: _, ...rest } = result;
  return JSON.parse(
    JSON.stringify(rest, (_, value: unknown) => (value instanceof Float64Array ? [...value] : value)),
  );
}

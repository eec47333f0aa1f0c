import {
  type CoppiceError,
  type DecoderLayer,
  type Executor,
  highest,
  type LayerPlan,
  type MlpSpec,
  type MoeModel,
  type MoeSpec,
  moeLayers,
  noWork,
  type Plan,
  type PlanScores,
  Rng,
  type TensorRef,
  throwIfAborted,
} from "@coppice/core";

export interface ToyModelShape {
  /** MoE layers; a dense layer comes before them, so that layer 0 has no experts. Default 3. */
  readonly layers?: number;
  /** Default 6. */
  readonly experts?: number;
  /** Default 2. */
  readonly topK?: number;
}

/** A model description without files, for searches: small, valid, and with a dense first layer. */
export function toyModel(shape: ToyModelShape = {}): MoeModel {
  const { layers = 3, experts = 6, topK = 2 } = shape;
  let offset = 0;
  const tensor = (name: string, ...size: number[]): TensorRef => {
    const begin = offset;
    offset += 4 * size.reduce((product, n) => product * n, 1);
    return { name, dtype: "F32", shape: size, file: "toy.safetensors", begin, end: offset };
  };
  const mlp = (name: string): MlpSpec => ({
    gate: tensor(`${name}.gate`, 2, 2),
    up: tensor(`${name}.up`, 2, 2),
    down: tensor(`${name}.down`, 2, 2),
    width: 2,
    activation: { kind: "silu" },
  });
  const layer = (index: number): DecoderLayer => {
    const name = (part: string) => `layers.${index}.${part}`;
    const moe: MoeSpec = {
      kind: "moe",
      router: {
        weight: tensor(name("router"), experts, 2),
        order: "softmax-topk",
        normalize: { power: 1 },
        topK,
      },
      experts: Array.from({ length: experts }, (_, expert) => mlp(name(`experts.${expert}`))),
    };
    return {
      index,
      attentionNorm: { kind: "rms", weight: tensor(name("norm1"), 2), epsilon: 1e-5 },
      attention: {
        kind: "gqa",
        heads: 1,
        kvHeads: 1,
        headDim: 2,
        scale: 2 ** -0.5,
        query: { weight: tensor(name("q"), 2, 2) },
        key: { weight: tensor(name("k"), 2, 2) },
        value: { weight: tensor(name("v"), 2, 2) },
        output: { weight: tensor(name("o"), 2, 2) },
        rotary: { theta: 10_000, dimensions: 2, interleaved: false },
      },
      feedForwardNorm: { kind: "rms", weight: tensor(name("norm2"), 2), epsilon: 1e-5 },
      feedForward: index === 0 ? { kind: "dense", mlp: mlp(name("mlp")) } : moe,
    };
  };
  return {
    family: "toy",
    fingerprint: `toy-${layers}x${experts}`,
    hiddenSize: 2,
    vocabSize: 4,
    contextLength: 16,
    embedding: tensor("embedding", 4, 2),
    layers: Array.from({ length: layers + 1 }, (_, index) => layer(index)),
    finalNorm: { kind: "rms", weight: tensor("norm", 2), epsilon: 1e-5 },
    head: tensor("head", 4, 2),
    tied: false,
    endTokens: [0],
  };
}

/** Gives a valid plan its fitness, between 0 and 1 or so; stands for a model and a task. */
export type Landscape = (plan: Plan) => number;

export interface SeparableLandscape {
  readonly fitness: Landscape;
  /** Value of every expert per MoE layer, which a perfect criterion would know. */
  readonly values: readonly Float64Array[];
  /** The highest fitness of any plan that keeps `keep` experts and merges nothing. */
  optimum(keep: number): number;
}

/**
 * The easy landscape: every expert has a hidden value of [0, 1], and fitness is the mean over layers of the mean
 * value of the kept experts. Merging pays as long as a coefficient stays within the value of the expert that it
 * adds: a row with coefficients `m` that differ from the slot's own expert by `d` is worth `m·values - |d|²/2`.
 */
export function separableLandscape(model: MoeModel, seed = 1): SeparableLandscape {
  const rng = Rng.fromSeed(seed);
  const layers = moeLayers(model);
  const values = layers.map((layer) => Float64Array.from(layer.feedForward.experts, () => rng.uniform()));
  const rows = new Map(layers.map((layer, row) => [layer.index, row]));
  const mean = (numbers: readonly number[]) => numbers.reduce((sum, n) => sum + n, 0) / numbers.length;
  const layerFitness = (entry: LayerPlan, worth: Float64Array): number =>
    mean(
      entry.experts.map((expert, slot) => {
        const own = worth[expert] as number;
        const gain = entry.merge?.[slot]?.reduce((sum, coefficient, j) => {
          const step = coefficient - (j === expert ? 1 : 0);
          return sum + step * (worth[j] as number) - step ** 2 / 2;
        }, 0);
        return own + (gain ?? 0);
      }),
    );
  const fitness: Landscape = (plan) => {
    const total = values.map((worth) => mean([...worth]));
    for (const entry of plan.layers) {
      const row = rows.get(entry.layer) as number;
      total[row] = layerFitness(entry, values[row] as Float64Array);
    }
    return mean(total);
  };
  const optimum = (keep: number): number =>
    mean(values.map((worth) => mean(highest(worth, keep).map((expert) => worth[expert] as number))));
  return { fitness, values, optimum };
}

export interface ToyExecutor extends Executor {
  /** Every plan that was evaluated, in order. */
  readonly evaluated: readonly Plan[];
}

export interface ToyExecutorOptions {
  /** Samples per plan; their scores differ, their mean is the fitness. Default 4. */
  readonly samples?: number;
  /** The executor rejects with `failure` instead of evaluating a plan for which this is true. */
  readonly fails?: (plan: Plan, evaluation: number) => boolean;
  /** Default an Error with the message "toy executor was stopped". */
  readonly failure?: Error | CoppiceError;
}

/** An executor that asks a landscape instead of running a model. Answers count as right above a score of 1/2. */
export function toyExecutor(landscape: Landscape, options: ToyExecutorOptions = {}): ToyExecutor {
  const { samples = 4, fails, failure = new Error("toy executor was stopped") } = options;
  const evaluated: Plan[] = [];
  const evaluateOne = (plan: Plan): PlanScores => {
    if (fails?.(plan, evaluated.length)) throw failure;
    evaluated.push(plan);
    const fitness = landscape(plan);
    const middle = (samples - 1) / 2;
    const scores = Float64Array.from({ length: samples }, (_, i) => fitness + (i - middle) / 16);
    return { scores, correct: Uint8Array.from(scores, (score) => (score > 0.5 ? 1 : 0)) };
  };
  const dispose = async () => {};
  return {
    evaluated,
    preferredBatch: 2,
    async evaluate(plans, { signal } = {}) {
      throwIfAborted(signal, "evaluating toy plans");
      return plans.map(evaluateOne);
    },
    work: () => ({ ...noWork, tokenLayers: evaluated.length }),
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

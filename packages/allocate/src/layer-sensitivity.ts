import {
  CoppiceError,
  createPlan,
  type DecoderLayer,
  type MoeLayer,
  type MoeModel,
  type Plan,
  type Runner,
  type RunRequest,
  type RunResult,
  startProgress,
  throwIfAborted,
} from "@coppice/core";
import { type DropPoint, dropCounts, dropLosses } from "./drop-losses.js";
import { LayerOutputs } from "./layer-outputs.js";
import type { SensitivityRequest } from "./measure-sensitivity.js";
import { ReplacedWeights } from "./replaced-weights.js";
import type { ExpertLoss, MatrixLoss, WidthMatrix } from "./sensitivity.js";

export interface LayerSensitivity {
  readonly matrices: readonly MatrixLoss[];
  /** Empty for layers without experts. */
  readonly experts: readonly ExpertLoss[];
}

/** What one run with quantized matrices showed. */
interface Measured {
  readonly bits: number;
  /** Nats per position. */
  readonly loss: number;
  /** Of every expert, where the matrices are those of experts. */
  readonly errors?: Float64Array;
}

/** Measures layer after layer, from the first to the last. */
export class SensitivityWork implements AsyncDisposable {
  readonly #request: SensitivityRequest;
  readonly #full: Runner;
  /** [R, vocab], of the whole model. */
  readonly #logits: Float32Array;
  /** Input of the next layer, [T, hidden]; undefined before the first. */
  #hidden: Float32Array | undefined;
  #runs = 0;
  readonly #tell: (done: number, total: number) => void;

  private constructor(request: SensitivityRequest, full: Runner, logits: Float32Array) {
    this.#request = request;
    this.#full = full;
    this.#logits = logits;
    this.#tell = startProgress(request.emitter, "measuring what fewer bits lose", "steps");
  }

  static async start(request: SensitivityRequest): Promise<SensitivityWork> {
    const { backend, model, weights, sequences, positions, signal } = request;
    const common = { ...(signal && { signal }) };
    const full = await backend.load({ model, weights, ...common });
    try {
      const { logits } = await full.run({ sequences, positions, ...common });
      return new SensitivityWork(request, full, needed(logits));
    } catch (error) {
      await full.dispose();
      throw error;
    }
  }

  /** The next layer, and what stands before the first and behind the last. */
  async measure(layer: DecoderLayer): Promise<LayerSensitivity> {
    const weights = new ReplacedWeights(this.#request.weights);
    const own = isMoe(layer) ? this.#emptyOutputs(layer) : undefined;
    const after = await this.#run(this.#full, layer, { ...(own && { tap: own.tap }) });
    const matrices: MatrixLoss[] = [];
    for (const group of this.#groups(layer)) {
      const measured: Measured[] = [];
      for (const bits of this.#request.bits)
        measured.push(await this.#quantized(layer, group, bits, weights, own));
      matrices.push(...sharedOut(group, measured));
    }
    const experts = isMoe(layer) && own ? await this.#experts(layer, own) : [];
    this.#hidden = after.boundaries.get(layer.index + 1);
    return { matrices, experts };
  }

  /** Matrices that are quantized together: those of all experts, of all roles or of one; others by themselves. */
  #groups({ index }: DecoderLayer): WidthMatrix[][] {
    const { matrices, model, quantize = "experts" } = this.#request;
    const here = matrices.filter(({ layer, weight }) => {
      if (layer !== undefined) return layer === index;
      return weight === model.embedding ? index === 0 : index === model.layers.length - 1;
    });
    const groups = new Map<string, WidthMatrix[]>();
    for (const matrix of here) {
      const key =
        matrix.expert === undefined
          ? matrix.name
          : quantize === "experts"
            ? "experts"
            : `experts ${matrix.role}`;
      groups.set(key, [...(groups.get(key) ?? []), matrix]);
    }
    return [...groups.values()];
  }

  async #quantized(
    layer: DecoderLayer,
    group: readonly WidthMatrix[],
    bits: number,
    weights: ReplacedWeights,
    own: LayerOutputs | undefined,
  ): Promise<Measured> {
    const { backend, model, quantized, signal } = this.#request;
    const values: (readonly [WidthMatrix["weight"], Float32Array])[] = [];
    for (const matrix of group) values.push([matrix.weight, await quantized(matrix, bits)]);
    // A tied embedding is the head as well: the whole model runs, whose weights are more than what is kept of a layer.
    const isEverywhere = model.tied && group.some(({ weight }) => weight === model.embedding);
    const reader = isEverywhere ? new ReplacedWeights(this.#request.weights, false) : weights;
    reader.replace(values);
    const to = isEverywhere ? model.layers.length : layer.index + 1;
    const runner = await backend.load({
      model,
      weights: reader,
      layers: { from: layer.index, to },
      ...(signal && { signal }),
    });
    try {
      const isOfExperts = own && isMoe(layer) && group[0]?.expert !== undefined;
      const other = isOfExperts ? this.#emptyOutputs(layer) : undefined;
      const { boundaries, logits } = await this.#run(runner, layer, { to, ...(other && { tap: other.tap }) });
      const loss = this.#divergence(logits ?? (await this.#rest(layer.index + 1, boundaries.get(to))));
      return { bits, loss, ...(other && own && { errors: own.expertErrors(other) }) };
    } finally {
      await runner.dispose();
      this.#notify();
    }
  }

  /** What the experts of a layer are used for, and what dropping them costs. */
  async #experts(layer: MoeLayer, own: LayerOutputs): Promise<ExpertLoss[]> {
    const { counts, gates } = own.usage();
    const total = (values: Float64Array) => values.reduce((a, b) => a + b, 0) || 1;
    const dropped = mostDropped(layer) > 0 ? await this.#drops(layer, own, counts) : undefined;
    return layer.feedForward.experts.map((_, expert) => ({
      layer: layer.index,
      expert,
      share: (counts[expert] as number) / total(counts),
      gateShare: (gates[expert] as number) / total(gates),
      ...(dropped && {
        dropped: { loss: dropped.losses[expert] as number, error: dropped.errors[expert] as number },
      }),
    }));
  }

  async #drops(layer: MoeLayer, own: LayerOutputs, counts: Float64Array) {
    const errors = new Float64Array(counts.length);
    for (const expert of counts.keys()) {
      // An expert that no token goes to is dropped without a change.
      if (counts[expert] !== 0) errors[expert] = own.outputError(await this.#without(layer, [expert]));
      this.#notify();
    }
    const order = Array.from(errors.keys()).sort((a, b) => (errors[a] as number) - (errors[b] as number));
    const points: DropPoint[] = [];
    for (const count of dropCounts(mostDropped(layer))) {
      const to = layer.index + 1;
      const plan = planWithout(layer, order.slice(0, count), this.#request.model);
      const { boundaries, logits } = await this.#run(this.#full, layer, { plan });
      points.push({ count, loss: this.#divergence(logits ?? (await this.#rest(to, boundaries.get(to)))) });
      this.#notify();
    }
    return { errors, losses: dropLosses(order, errors, points) };
  }

  /** What a layer puts out without some experts. */
  async #without(layer: MoeLayer, dropped: readonly number[]): Promise<LayerOutputs> {
    const other = this.#emptyOutputs(layer);
    const plan = planWithout(layer, dropped, this.#request.model);
    await this.#run(this.#full, layer, { plan, tap: other.tap });
    return other;
  }

  /** Runs a layer, or from it to the end, on what the whole model gives it. */
  #run(
    runner: Runner,
    { index }: DecoderLayer,
    { to = index + 1, ...more }: Pick<RunRequest, "to" | "tap" | "plan">,
  ): Promise<RunResult> {
    const { sequences, positions, model, signal } = this.#request;
    throwIfAborted(signal, `measuring what layer ${index} loses`);
    return runner.run({
      sequences,
      from: index,
      to,
      boundaries: [to],
      ...(this.#hidden && { hidden: this.#hidden }),
      ...(to === model.layers.length && { positions }),
      ...more,
      ...(signal && { signal }),
    });
  }

  async #rest(from: number, hidden: Float32Array | undefined): Promise<Float32Array | undefined> {
    const { sequences, positions, signal } = this.#request;
    const request = { sequences, positions, from, hidden: needed(hidden), ...(signal && { signal }) };
    return (await this.#full.run(request)).logits;
  }

  #divergence(logits: Float32Array | undefined): number {
    const { model, divergence } = this.#request;
    const other = needed(logits);
    const rows = other.length / model.vocabSize;
    let sum = 0;
    for (let row = 0; row < rows; row++) {
      const [begin, end] = [row * model.vocabSize, (row + 1) * model.vocabSize];
      sum += divergence(this.#logits.subarray(begin, end), other.subarray(begin, end));
    }
    return sum / rows;
  }

  #emptyOutputs(layer: MoeLayer): LayerOutputs {
    const tokens = this.#request.sequences.reduce((sum, { length }) => sum + length, 0);
    return new LayerOutputs(layer, tokens, this.#request.model.hiddenSize);
  }

  #notify(): void {
    const { model, bits } = this.#request;
    const total = model.layers.reduce((sum, layer) => {
      const most = isMoe(layer) ? mostDropped(layer) : 0;
      const drops = isMoe(layer) && most > 0 ? layer.feedForward.experts.length + dropCounts(most).length : 0;
      return sum + this.#groups(layer).length * bits.length + drops;
    }, 0);
    this.#runs++;
    this.#tell(this.#runs, total);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#full.dispose();
  }
}

/**
 * Gives every matrix of a group its part of what the group loses: by its expert's error, in parts alike for the matrices of
 * one expert, or all where there are no experts.
 */
function sharedOut(group: readonly WidthMatrix[], measured: readonly Measured[]): MatrixLoss[] {
  const parts = group.filter(({ expert }) => expert === group[0]?.expert).length;
  return group.map(({ name, role, layer, expert }) => ({
    name,
    role,
    ...(layer !== undefined && { layer }),
    ...(expert !== undefined && { expert }),
    widths: measured.map(({ bits, loss, errors }) => {
      if (!errors || expert === undefined) return { bits, loss };
      const total = errors.reduce((a, b) => a + b, 0);
      const error = (errors[expert] as number) / parts;
      return { bits, error, loss: total > 0 ? (loss * error) / total : 0 };
    }),
  }));
}

/** How many experts can be dropped; none where groups of experts belong together. */
function mostDropped({ feedForward: { experts, router } }: MoeLayer): number {
  return router.groups ? 0 : experts.length - router.topK;
}

function planWithout(layer: MoeLayer, dropped: readonly number[], model: MoeModel): Plan {
  const kept = layer.feedForward.experts.map((_, expert) => expert).filter((i) => !dropped.includes(i));
  return createPlan(model, [{ layer: layer.index, experts: kept }]);
}

function isMoe(layer: DecoderLayer): layer is MoeLayer {
  return layer.feedForward.kind === "moe";
}

function needed<T>(values: T | undefined): T {
  if (values !== undefined) return values;
  throw new CoppiceError(
    "COPPICE_BACKEND_FAILED",
    "the backend returned no logits or boundary, which were asked for",
  );
}

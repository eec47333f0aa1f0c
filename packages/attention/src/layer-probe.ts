import {
  type AttentionPlan,
  type AttentionSample,
  CoppiceError,
  type LimitableLayer,
  type SpanRule,
} from "@coppice/core";
import { divergence } from "@coppice/evaluate";
import type { ProfileRequest } from "./head-profile.js";
import { spread } from "./profile-samples.js";
import { soleHeadsPlan } from "./sole-heads-plan.js";

/** Shares of the context that a probed layer or head still sees. */
export const probeShares = [1 / 8, 1 / 4] as const;
/** Predictions of each text that are compared. */
export const comparedPositions = 48;

/** Inputs of a layer, [tokens, hidden] of every text; absent for the first layer. */
export interface ResumeAt {
  readonly layer: number;
  readonly hidden: readonly (Float32Array | undefined)[];
}

/** Predictions of some texts as they are, to compare others with. */
export class Predictions {
  readonly samples: readonly AttentionSample[];
  readonly #request: Pick<ProfileRequest, "runner" | "signal">;
  readonly #logits: Float32Array[] = [];

  private constructor(
    request: Pick<ProfileRequest, "runner" | "signal">,
    samples: readonly AttentionSample[],
  ) {
    this.#request = request;
    this.samples = samples;
  }

  static async start(
    request: Pick<ProfileRequest, "runner" | "signal">,
    samples: readonly AttentionSample[],
  ): Promise<Predictions> {
    const predictions = new Predictions(request, samples);
    for (const sample of samples) predictions.#logits.push(await predictions.#predict(sample));
    return predictions;
  }

  /**
   * Mean KL divergence of the predictions with limited attention, in nats per position.
   * @param resume where only this layer and those behind it are limited
   */
  async loss(plan: AttentionPlan, resume?: ResumeAt): Promise<number> {
    const { vocabSize } = this.#request.runner.model;
    let sum = 0;
    for (const [s, sample] of this.samples.entries()) {
      const own = this.#logits[s] as Float32Array;
      const hidden = resume?.hidden[s];
      const other = await this.#predict(sample, {
        plan,
        ...(resume && hidden && { from: resume.layer, hidden }),
      });
      let total = 0;
      for (let at = 0; at < own.length; at += vocabSize)
        total += divergence(own.subarray(at, at + vocabSize), other.subarray(at, at + vocabSize));
      sum += (total * vocabSize) / own.length;
    }
    return sum / this.samples.length;
  }

  async #predict(
    { tokens, responseFrom }: AttentionSample,
    { plan, from, hidden }: { plan?: AttentionPlan; from?: number; hidden?: Float32Array } = {},
  ): Promise<Float32Array> {
    const { runner, signal } = this.#request;
    const first = Math.max(0, responseFrom - 1);
    const { logits } = await runner.run({
      sequences: [tokens],
      positions: [Int32Array.from(spread(first, tokens.length - 1, comparedPositions))],
      ...(plan && { attention: { plan } }),
      ...(from !== undefined && hidden && { from, hidden }),
      ...(signal && { signal }),
    });
    if (logits) return logits;
    throw new CoppiceError("COPPICE_BACKEND_FAILED", "the backend returned no logits, which were asked for");
  }
}

/** What was measured of one layer, which the layer's output errors complete. */
export interface ProbedLayer {
  /** Rules that the layer was limited to. */
  readonly rules: readonly SpanRule[];
  /** Adds a text's errors of a KV head with each of the rules. */
  addErrors(head: number, errors: readonly number[]): void;
  /** Writes the factors of the layer's heads into those of all heads. */
  finish(sensitivity: Float64Array): void;
}

/** Limits one layer, or one KV head, at a time and compares predictions. */
export class LayerProbe {
  readonly #request: ProfileRequest;
  readonly #predictions: Predictions;
  readonly #per: "layer" | "head";

  private constructor(request: ProfileRequest, predictions: Predictions, per: "layer" | "head") {
    this.#request = request;
    this.#predictions = predictions;
    this.#per = per;
  }

  static async start(
    request: ProfileRequest,
    { per, samples }: NonNullable<ProfileRequest["probe"]>,
  ): Promise<LayerProbe> {
    // Short texts are enough: what a layer is worth hardly depends on the length.
    const texts = request.samples[0]?.slice(0, samples) ?? [];
    return new LayerProbe(request, await Predictions.start(request, texts), per);
  }

  /**
   * @param first the layer's first KV head among all
   * @param hidden inputs of the layer, of every text of the shortest length
   */
  async measure(
    { index, attention: { kvHeads } }: LimitableLayer,
    first: number,
    hidden: ResumeAt["hidden"],
  ): Promise<ProbedLayer> {
    const rules = probeShares.map((beta): SpanRule => ({ alpha: 0, beta }));
    const all = Array.from({ length: kvHeads }, (_, head) => head);
    const units = this.#per === "layer" ? [all] : all.map((head) => [head]);
    const losses: number[][] = [];
    for (const heads of units) {
      const own: number[] = [];
      for (const rule of rules) {
        const { model, blockSize, sinks } = this.#request;
        const plan = soleHeadsPlan(model, { blockSize, sinks, layer: index, heads, rule });
        own.push(await this.#predictions.loss(plan, { layer: index, hidden }));
      }
      losses.push(own);
    }
    const texts = this.#request.samples[0]?.length ?? 1;
    const errors = all.map(() => rules.map(() => 0));
    return {
      rules,
      addErrors: (head, some) => {
        some.forEach((error, r) => {
          const row = errors[head] as number[];
          row[r] = (row[r] as number) + error / texts;
        });
      },
      finish: (sensitivity) => {
        units.forEach((heads, unit) => {
          const factors = rules.map((_, r) => {
            const error = heads.reduce((sum, head) => sum + (errors[head]?.[r] as number), 0);
            return error > 0 ? (losses[unit]?.[r] as number) / error : 0;
          });
          const mean = factors.reduce((sum, factor) => sum + factor, 0) / rules.length;
          for (const head of heads) sensitivity[first + head] = mean;
        });
      },
    };
  }
}

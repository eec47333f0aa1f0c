import {
  CoppiceError,
  type Criterion,
  definePlugin,
  type MoeLayer,
  moeLayers,
  type ScoreRequest,
  startProgress,
} from "@coppice/core";
import * as v from "valibot";
import { BlockLoss, type SampledLayer } from "./block-loss.js";
import { addTo, type ChainStep, eliminateFrom } from "./expert-chain.js";
import { KeepRule } from "./keep-rule.js";
import { collectedLayers } from "./layer-statistics.js";
import { Turns } from "./turns.js";

export interface NaeeOptions {
  /**
   * How the set of kept experts is found: `exact` tries all of them; `backward` drops one expert after the other from all
   * of them, `forward` adds one after the other to none; `auto` is `exact` where the number of experts to keep is known and
   * no more than `subsets` sets keep so many, else `backward`.
   * @default "auto"
   */
  readonly method?: "auto" | "exact" | "backward" | "forward" | undefined;
  /** Most sets of one layer that are tried; 2000 holds all of up to 12 experts. @default 2000 */
  readonly subsets?: number | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    naee: NaeeOptions;
  }
}

const needs: Criterion["needs"] = { statistics: true, weights: true, sample: ["logits", "grams"] };

/**
 * Reconstruction loss of the MoE block (NAEE, arXiv 2402.14800): the kept set S of each layer is the one with the least
 * `L(S) = sqrt(Σ_t ‖y_t - y_t(S)‖₂²)` over the sampled tokens t, y being the block's output and y(S) its output when the
 * router chooses among S. Every layer sees the inputs of the whole model (the paper's layer-wise pruning). The authors' code
 * (Lucky-Lance/Expert_Sparsity) adds up Frobenius norms of batches instead, so that its loss depends on how the data is cut
 * into batches; with all data in one batch it is L. Outputs and gate weights are those of `BlockLoss`, from the sample's
 * logits and Gram matrices.
 *
 * Scores follow a chain of sets from all experts to none, each without one expert of the one before, through S: an expert
 * scores the loss of the set that is left when it goes, or a billionth of L(∅) more than the one that went before it, if that
 * is more. So the highest scores are S, and the (E - n)-th smallest is the loss of keeping n experts.
 */
export const naee = definePlugin({
  kind: "criterion",
  name: "naee",
  contract: 1,
  summary: "Keeps the experts without which a sample of the layer's outputs changes least (NAEE).",
  reference: "https://arxiv.org/abs/2402.14800",
  options: v.strictObject({
    method: v.optional(v.picklist(["auto", "exact", "backward", "forward"]), "auto"),
    subsets: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 2000),
  }),
  create: (options): Criterion => ({
    needs,
    async score(request) {
      const statistics = collectedLayers(request, needs, "naee");
      const { model, keep, topK, emitter, signal } = request;
      const layers = moeLayers(model);
      const tell = startProgress(emitter, "choosing experts", "layers");
      const scores: Float64Array[] = [];
      for (const [i, layer] of layers.entries()) {
        const turns = new Turns(signal, `choosing the experts of layer ${layer.index}`);
        await turns.next();
        const sample = statistics[i]?.sample as SampledLayer;
        const block = new BlockLoss(layer, sample, await correctionOf(layer, request), topK);
        scores.push(ascending(await chain(block, options, keep, turns)));
        tell(i + 1, layers.length);
      }
      return scores;
    },
  }),
});

type Settings = { readonly method: NonNullable<NaeeOptions["method"]>; readonly subsets: number };

/** All experts of a layer, the first to go first. */
async function chain(
  block: BlockLoss,
  { method, subsets }: Settings,
  keep: number | undefined,
  turns: Turns,
): Promise<ChainStep[]> {
  const rule = keep === undefined ? undefined : new KeepRule(block.layer, keep);
  if (method === "exact" || method === "auto") {
    const best = rule && (await leastLoss(block, rule, subsets, turns));
    if (best) {
      const rest = await addTo(block, best, turns);
      return [...rest.reverse(), ...(await eliminateFrom(block, best, turns))];
    }
    if (method === "exact") throw notExact(block, keep, subsets);
  }
  if (method === "forward") {
    const steps = await addTo(
      block,
      [],
      turns,
      (set) => !rule || set.length > rule.keep || rule.leadsUp(set),
    );
    return steps.reverse();
  }
  const all = Array.from({ length: block.experts }, (_, expert) => expert);
  return eliminateFrom(block, all, turns, (set) => !rule || set.length < rule.keep || rule.leadsDown(set));
}

/** The set with the least loss; undefined when there are more than `limit`. */
async function leastLoss(
  block: BlockLoss,
  rule: KeepRule,
  limit: number,
  turns: Turns,
): Promise<number[] | undefined> {
  let count = 0;
  for (const _ of rule.sets()) if (++count > limit) return undefined;
  let best: { readonly set: number[]; readonly squared: number } | undefined;
  for (const set of rule.sets()) {
    await turns.next();
    const squared = block.squared(set);
    if (!best || squared < best.squared) best = { set, squared };
  }
  return best?.set;
}

function notExact({ layer }: BlockLoss, keep: number | undefined, subsets: number): CoppiceError {
  return keep === undefined
    ? new CoppiceError(
        "COPPICE_USAGE",
        "naee tries all sets of experts only when it knows how many are to be kept",
        {
          hint: "say how many, or set method to backward, which orders all experts",
        },
      )
    : new CoppiceError(
        "COPPICE_PLUGIN_OPTIONS",
        `options of criterion:naee are not usable: more than ${subsets} sets keep ${keep} of the ` +
          `${layer.feedForward.experts.length} experts of layer ${layer.index}`,
        {
          hint: "raise subsets, or set method to backward or forward",
          details: { layer: layer.index, keep, subsets },
        },
      );
}

/** Values that are added to the scores for the choice alone. */
async function correctionOf(
  { feedForward: { router }, index }: MoeLayer,
  { weights, signal }: ScoreRequest,
): Promise<Float32Array | undefined> {
  if (!router.correction) return undefined;
  if (weights) return weights.read(router.correction, signal && { signal });
  throw new CoppiceError(
    "COPPICE_USAGE",
    `naee reads the correction of the router of layer ${index}, no weight reader was given`,
  );
}

function ascending(steps: readonly ChainStep[]): Float64Array {
  const scores = new Float64Array(steps.length);
  const none = Math.sqrt(Math.max(0, steps.at(-1)?.squared ?? 0));
  const least = 1e-9 * (none || 1);
  let before = 0;
  for (const { expert, squared } of steps) {
    // Grams are rounded, so that a loss of nothing may come out below 0.
    before = Math.max(Math.sqrt(Math.max(0, squared)), before + least);
    scores[expert] = before;
  }
  return scores;
}

import {
  type AttentionEstimate,
  type AttentionMethod,
  type AttentionPlan,
  type AttentionPlanRequest,
  type AttentionSample,
  definePlugin,
  type Runner,
} from "@coppice/core";
import * as v from "valibot";
import { checkDecisions } from "./check-decisions.js";
import { type HeadProfile, profileHeads } from "./head-profile.js";
import { Predictions } from "./layer-probe.js";
import { profileEstimate } from "./moa-estimate.js";
import { samplesByLength } from "./profile-samples.js";
import { providedFor } from "./provided-for.js";
import { type FrontPoint, meanLoss, spanFront } from "./span-front.js";
import {
  blockSizeSchema,
  defaultSpans,
  probeTextsSchema,
  probeUnits,
  rowsSchema,
  type Sensitivity,
  sensitivitySchema,
  sinksSchema,
} from "./span-options.js";
import { spanBudgets, spanPlan } from "./span-plan.js";
import { spanRules } from "./span-rules.js";
import { spanSolver } from "./span-solver.js";
import { type TextLikelihood, textLikelihood } from "./text-likelihood.js";

/** Options of the plugin `moa-span`. */
export interface MoaSpanOptions {
  /** First tokens that every head keeps; default 4. */
  readonly sinks?: number;
  /** Tokens per block, of which spans are whole numbers; default 16. */
  readonly blockSize?: number;
  /** Different rules that the heads of a layer may have: 1, 2, or 0 for any number; default 2. */
  readonly rulesPerLayer?: 0 | 1 | 2;
  /** Positions of each text that are looked at; default 256. */
  readonly rows?: number;
  /** What positions of prompts count together, where those of responses count 1; default 0.25. */
  readonly promptWeight?: number;
  /**
   * What a loss is worth: measured per `layer`, per KV `head`, or not at all (`none`); default: per head where there are no more
   * than 64 of them.
   */
  readonly sensitivity?: Sensitivity;
  /** Texts of the shortest length that worth is measured on; default 2. */
  readonly probeTexts?: number;
  /** Heads that are limited alone at the end, to compare their losses with those predicted; default 20. */
  readonly checks?: number;
  /** Choices of the front that are compared by likelihood; default 4. */
  readonly candidates?: number;
}

declare module "@coppice/core" {
  interface AttentionPlugins {
    "moa-span": MoaSpanOptions;
  }
}

const count = (least: number, most: number) =>
  v.pipe(v.number(), v.safeInteger(), v.minValue(least), v.maxValue(most));

/**
 * A span rule for every KV head (MoA, arXiv 2406.14909) without gradients: what every rule changes of the layer's output, in one
 * pass per text (see `profileHeads`), times what a change of that layer or head is worth; the choices of least loss within the
 * density at every length (see `solveSpans`), over a grid of weights of the lengths; and of those the one with the likeliest
 * responses at a length that was not profiled.
 */
export const moaSpan = definePlugin({
  kind: "attention",
  name: "moa-span",
  contract: 1,
  summary: "Chooses how far every head looks by what it would lose, without gradients (MoA).",
  reference: "https://arxiv.org/abs/2406.14909",
  options: v.strictObject({
    sinks: v.exactOptional(sinksSchema, defaultSpans.sinks),
    blockSize: v.exactOptional(blockSizeSchema, defaultSpans.blockSize),
    rulesPerLayer: v.exactOptional(v.picklist([0, 1, 2]), 2),
    rows: v.exactOptional(rowsSchema, 256),
    promptWeight: v.exactOptional(v.pipe(v.number(), v.minValue(0), v.maxValue(100)), 0.25),
    sensitivity: v.exactOptional(sensitivitySchema),
    probeTexts: v.exactOptional(probeTextsSchema, 2),
    checks: v.exactOptional(count(0, 1000), 20),
    candidates: v.exactOptional(count(1, 64), 4),
  }),
  create: (options): AttentionMethod => ({
    needs: { runner: true, weights: true, samples: true },
    plan: (request) => moaSpanPlan(request, options),
    estimate: (request) => estimate(request, options),
  }),
});

type Options = Required<Omit<MoaSpanOptions, "sensitivity">> & Pick<MoaSpanOptions, "sensitivity">;

/** What is known before any work. */
function prepare(request: AttentionPlanRequest, options: Options) {
  const { model, lengths, density } = request;
  const grid = { blockSize: options.blockSize, sinks: options.sinks };
  const rules = spanRules({ ...grid, lengths, longest: model.contextLength });
  const budgets = spanBudgets(model, { ...grid, rules }, { lengths, density });
  const units = probeUnits(options.sensitivity, budgets.layers);
  return { grid, rules, budgets, units, samples: samplesByLength(request.samples, lengths) };
}

function estimate(request: AttentionPlanRequest, options: Options): AttentionEstimate {
  const { rules, units } = prepare(request, options);
  return profileEstimate(request, { ...options, rules: rules.length, probeUnits: units.count });
}

async function moaSpanPlan(request: AttentionPlanRequest, options: Options): Promise<AttentionPlan> {
  const { model, lengths, density, signal, emitter } = request;
  const { runner, weights } = providedFor("moa-span", request);
  const { grid, rules, budgets, units, samples } = prepare(request, options);
  const common = { ...(signal && { signal }), ...(emitter && { emitter }) };
  const profile = await profileHeads({
    ...{ model, runner, weights, samples, rules, ...grid, ...common },
    rows: options.rows,
    promptWeight: options.promptWeight,
    ...(units.per !== "none" && { probe: { per: units.per, samples: options.probeTexts } }),
  });
  const limit = options.rulesPerLayer === 0 ? {} : { rulesPerLayer: options.rulesPerLayer };
  const front = spanFront({ ...budgets, ...limit }, profile.losses, {
    solve: spanSolver(request.solver),
    ...(signal && { signal }),
  });
  const planOf = ({ choice }: FrontPoint) => spanPlan(model, { ...grid, rules, choice });
  const { validation = [] } = request;
  const judged = await judgeFront(front.slice(0, options.candidates), validation, planOf, {
    runner,
    ...common,
  });
  const [{ point, responses }] = judged as [Judged];
  const predictions = await Predictions.start(
    { runner, ...(signal && { signal }) },
    samples[0]?.slice(0, options.probeTexts) ?? [],
  );
  const check = await checkDecisions({
    ...{ model, ...grid, rules, choice: point.choice, predictions, count: options.checks },
    losses: profile.losses[0] as Float64Array,
    ...(signal && { signal }),
  });
  const report = {
    method: "moa-span",
    density,
    lengths,
    predicted: predictedLosses(profile, point, rules.length),
    solver: { loss: point.loss, bound: point.bound, optimal: point.optimal },
    front: judged.map(({ point: { weights, losses, loss, bound }, responses }) => ({
      ...{ weights, losses, loss, bound, responseLoss: responses?.loss ?? null },
    })),
    ...check,
    ...(responses && {
      validation: {
        length: Math.max(...validation.map(({ tokens }) => tokens.length)),
        dense: await textLikelihood(runner, validation, { signal }),
        plan: responses,
      },
    }),
  };
  return spanPlan(model, { ...grid, rules, choice: point.choice, report });
}

interface Judged {
  readonly point: FrontPoint;
  /** Absent without texts to tell by. */
  readonly responses?: TextLikelihood;
}

/**
 * The best first: by what responses lose at lengths that were not profiled, plus what is predicted for those that were, both in
 * nats per token. A few short responses alone would let a plan win that gives up a whole length.
 */
async function judgeFront(
  points: readonly FrontPoint[],
  validation: readonly AttentionSample[],
  planOf: (point: FrontPoint) => AttentionPlan,
  { runner, emitter, signal }: Pick<AttentionPlanRequest, "emitter" | "signal"> & { runner: Runner },
): Promise<Judged[]> {
  if (validation.length === 0) return points.map((point) => ({ point }));
  const judged: Required<Judged>[] = [];
  for (const point of points) {
    const responses = await textLikelihood(runner, validation, { plan: planOf(point), signal });
    judged.push({ point, responses });
    emitter?.notify("progress", {
      stage: "comparing plans",
      done: judged.length,
      total: points.length,
      unit: "plans",
    });
  }
  const loss = ({ point, responses }: Required<Judged>) => meanLoss(point) + responses.loss;
  return judged.sort((a, b) => loss(a) - loss(b));
}

/** [K][H], what every head loses by the rule that it got. */
function predictedLosses({ losses }: HeadProfile, { choice }: FrontPoint, rules: number): number[][] {
  return losses.map((own) => Array.from(choice, (rule, head) => own[head * rules + rule] as number));
}

import {
  type AttentionMethod,
  type AttentionPlan,
  type AttentionPlanRequest,
  attentionPlanModel,
  CoppiceError,
  definePlugin,
  limitableLayers,
  type SpanRule,
} from "@coppice/core";
import * as v from "valibot";
import { parseHeadPattern } from "./head-pattern.js";
import { profileHeads } from "./head-profile.js";
import { profileEstimate } from "./moa-estimate.js";
import { samplesByLength } from "./profile-samples.js";
import { providedFor } from "./provided-for.js";
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

/** Options of the plugin `duo-heads`. */
export interface DuoHeadsOptions {
  /** First tokens that every head keeps; default 4. */
  readonly sinks?: number;
  /** Latest tokens that streaming heads see, rounded up to whole blocks with the sinks; default 60. */
  readonly recent?: number;
  /** Tokens per block, of which spans are whole numbers; default 16. */
  readonly blockSize?: number;
  /**
   * Published head pattern, the text of a `full_attention_heads.tsv`: one line per layer, one number per KV head; heads with the
   * largest numbers see everything. Absent: heads are ranked by what they lose on samples.
   */
  readonly pattern?: string;
  /** Positions of each text that are looked at; default 256. */
  readonly rows?: number;
  /**
   * What a loss is worth: measured per `layer`, per KV `head`, or not at all (`none`); default: per head where there are no more
   * than 64 of them.
   */
  readonly sensitivity?: Sensitivity;
  /** Texts of the shortest length that worth is measured on; default 2. */
  readonly probeTexts?: number;
}

declare module "@coppice/core" {
  interface AttentionPlugins {
    "duo-heads": DuoHeadsOptions;
  }
}

/**
 * Some heads see everything, the others sinks and a short window (DuoAttention, arXiv 2410.10819): as many of the former as the
 * density allows, those with the highest trained gates of a published pattern, or those that would lose most by streaming
 * (see `profileHeads`).
 */
export const duoHeads = definePlugin({
  kind: "attention",
  name: "duo-heads",
  contract: 1,
  summary: "Some heads see everything, the others the first tokens and the latest (DuoAttention).",
  reference: "https://arxiv.org/abs/2410.10819",
  options: v.strictObject({
    sinks: v.exactOptional(sinksSchema, defaultSpans.sinks),
    recent: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 60),
    blockSize: v.exactOptional(blockSizeSchema, defaultSpans.blockSize),
    pattern: v.exactOptional(v.string()),
    rows: v.exactOptional(rowsSchema, 256),
    sensitivity: v.exactOptional(sensitivitySchema),
    probeTexts: v.exactOptional(probeTextsSchema, 2),
  }),
  create: (options): AttentionMethod => {
    const isPublished = options.pattern !== undefined;
    return {
      needs: { runner: !isPublished, weights: !isPublished, samples: !isPublished },
      plan: (request) => duoPlan(request, options),
      ...(!isPublished && {
        estimate: (request: AttentionPlanRequest) => {
          const { units } = prepare(request, options);
          samplesByLength(request.samples, request.lengths);
          const rest = { rules: 2, probeUnits: units.count, checks: 0, candidates: 0 };
          return profileEstimate(request, { ...options, ...rest });
        },
      }),
    };
  },
});

type Optional = "pattern" | "sensitivity";
type Options = Required<Omit<DuoHeadsOptions, Optional>> & Pick<DuoHeadsOptions, Optional>;

const [streaming, everything] = [0, 1];

/** What is known before any work: how many heads may see everything. */
function prepare({ model, lengths, density }: AttentionPlanRequest, options: Options) {
  const { blockSize, sinks, recent } = options;
  const rules: SpanRule[] = [
    { alpha: sinks + recent, beta: 0 },
    { alpha: 0, beta: 1 },
  ];
  const grid = { blockSize, sinks, rules };
  const { layers, costs, budgets } = spanBudgets(model, grid, { lengths, density });
  const heads = layers.reduce((sum, n) => sum + n, 0);
  const counts = budgets.map((budget, k) => {
    const [short, all] = [costs[k] as number, costs[lengths.length + k] as number];
    return all > short ? Math.floor((budget - heads * short) / (all - short)) : heads;
  });
  const units = probeUnits(options.sensitivity, layers);
  return { grid, heads, units, full: Math.min(heads, ...counts) };
}

async function duoPlan(request: AttentionPlanRequest, options: Options): Promise<AttentionPlan> {
  const { model, lengths, density } = request;
  const prepared = prepare(request, options);
  const { grid, heads, full } = prepared;
  const scores =
    options.pattern === undefined
      ? await streamingLosses(request, options, prepared)
      : publishedScores(request, options.pattern);
  const order = Array.from(scores.keys()).sort(
    (a, b) => (scores[b] as number) - (scores[a] as number) || a - b,
  );
  const choice = new Int32Array(heads).fill(streaming);
  for (const head of order.slice(0, full)) choice[head] = everything;
  const report = {
    method: "duo-heads",
    density,
    lengths,
    ranking: options.pattern === undefined ? "losses of streaming" : "pattern",
    scores: Array.from(scores),
    full,
  };
  return spanPlan(model, { ...grid, choice, report });
}

/** [H], what heads lose when they stream: the mean over lengths, each relative to what all heads lose there. */
async function streamingLosses(
  request: AttentionPlanRequest,
  { rows, probeTexts }: Options,
  { grid, units: { per } }: ReturnType<typeof prepare>,
): Promise<Float64Array> {
  const { model, lengths, signal, emitter } = request;
  const { losses } = await profileHeads({
    ...{ model, ...providedFor("duo-heads", request), ...grid, rows },
    samples: samplesByLength(request.samples, lengths),
    promptWeight: 0.25,
    ...(per !== "none" && { probe: { per, samples: probeTexts } }),
    ...(signal && { signal }),
    ...(emitter && { emitter }),
  });
  const scores = new Float64Array((losses[0]?.length ?? 0) / 2);
  for (const own of losses) {
    const total = own.reduce((sum, loss) => sum + loss, 0) || 1;
    for (let head = 0; head < scores.length; head++)
      scores[head] = (scores[head] as number) + (own[2 * head + streaming] as number) / total / losses.length;
  }
  return scores;
}

/** [H], of the layers that plans can limit. */
function publishedScores({ model }: AttentionPlanRequest, text: string): Float64Array {
  const { layers, kvHeads } = attentionPlanModel(model);
  const pattern = parseHeadPattern(text);
  const widths = new Set(pattern.map((row) => row.length));
  if (pattern.length !== layers || widths.size !== 1 || !widths.has(kvHeads)) {
    throw new CoppiceError(
      "COPPICE_ATTENTION_MODEL",
      `the head pattern is for ${pattern.length} layers of ${[...widths].join(" or ")} KV heads; this model has ${layers} of ${kvHeads}`,
    );
  }
  return Float64Array.from(limitableLayers(model).flatMap(({ index }) => pattern[index] as number[]));
}

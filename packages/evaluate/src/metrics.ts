import { CoppiceError } from "@coppice/core";
import { type BootstrapOptions, bootstrapMean, type Interval, wilsonInterval } from "./intervals.js";
import type { TaskForm } from "./task.js";

interface MetricSpec {
  readonly forms: readonly TaskForm[];
  /** Whether a larger value is a better model. */
  readonly better: "higher" | "lower";
  /** Every sample scores 0 or 1. */
  readonly binary: boolean;
  readonly summary: string;
}

/** What `evaluateTask` can measure. */
export const metrics = {
  "exact-match": {
    forms: ["generation"],
    better: "higher",
    binary: true,
    summary: "share of answers whose text, greedily decoded, equals the expected one",
  },
  "exact-match-tokens": {
    forms: ["generation"],
    better: "higher",
    binary: true,
    summary: "share of answers decoded with exactly the expected tokens, then ended",
  },
  f1: {
    forms: ["generation"],
    better: "higher",
    binary: false,
    summary: "mean word overlap (SQuAD F1) of the greedily decoded answer and the expected one",
  },
  "keyword-score": {
    forms: ["generation"],
    better: "higher",
    binary: false,
    summary:
      "mean word overlap (F1, common words left out) of answers that hold the keywords of the expected one, as in LV-Eval; else 0",
  },
  "choice-accuracy": {
    forms: ["choices"],
    better: "higher",
    binary: true,
    summary:
      "share of samples whose right choice has the highest log-likelihood (sum over tokens, not normalised)",
  },
  "choice-accuracy-per-byte": {
    forms: ["choices"],
    better: "higher",
    binary: true,
    summary: "as choice-accuracy, each log-likelihood divided by the choice's UTF-8 bytes",
  },
  "log-likelihood": {
    forms: ["generation", "text"],
    better: "higher",
    binary: false,
    summary:
      "mean over samples of the mean log-probability per expected token, the end of an answer included",
  },
  perplexity: {
    forms: ["generation", "text"],
    better: "lower",
    binary: false,
    summary: "exp of the negative mean log-probability per token, over all tokens of all samples",
  },
  kl: {
    forms: ["generation", "text"],
    better: "lower",
    binary: false,
    summary:
      "mean over samples of the mean KL divergence, per token, from the full model to the plan, in nats",
  },
} as const satisfies Record<string, MetricSpec>;

export type Metric = keyof typeof metrics;

/** The metric that fits a form when none is named. */
export function defaultMetric(form: TaskForm): Metric {
  return form === "generation" ? "exact-match" : form === "choices" ? "choice-accuracy" : "perplexity";
}

/**
 * Reads the name of a metric for tasks of a form.
 * @throws COPPICE_TASK_METRIC with the names that fit
 */
export function parseMetric(name: string, form: TaskForm): Metric {
  const fitting = (Object.keys(metrics) as Metric[]).filter((metric) =>
    (metrics[metric].forms as readonly TaskForm[]).includes(form),
  );
  const found = fitting.find((metric) => metric === name);
  if (found) return found;
  throw new CoppiceError(
    "COPPICE_TASK_METRIC",
    `the metric ${JSON.stringify(name)} does not fit a task of the form "${form}"; expected ${fitting.join(", ")}`,
    { details: { metric: name, form, fitting } },
  );
}

/** Scores of some samples. */
export interface SampleScores {
  /** Indices into the task's samples. */
  readonly samples: readonly number[];
  readonly scores: readonly number[];
  /** Tokens that each score is a mean of. */
  readonly tokens: readonly number[];
}

/**
 * The value of a metric over samples, with a 95 % interval: Wilson's for 0/1 metrics, else a percentile bootstrap
 * over samples. Perplexity weighs samples by their tokens, as its definition over a corpus asks.
 * @param scores per sample; for perplexity the mean log-probability per token
 * @param tokens per sample, used by perplexity
 */
export function summarize(
  metric: Metric,
  scores: ArrayLike<number>,
  tokens: ArrayLike<number>,
  options: BootstrapOptions = {},
): Interval {
  if (metrics[metric].binary) {
    let right = 0;
    for (let i = 0; i < scores.length; i++) right += scores[i] as number;
    return wilsonInterval(right, scores.length, options.confidence);
  }
  if (metric !== "perplexity") return bootstrapMean(scores, options);
  const { value, low, high } = bootstrapMean(scores, options, tokens);
  return { value: Math.exp(-value), low: Math.exp(-high), high: Math.exp(-low) };
}

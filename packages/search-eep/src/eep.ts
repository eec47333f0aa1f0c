import {
  CoppiceError,
  definePlugin,
  moeLayers,
  type SearchContext,
  type SearchStrategy,
} from "@coppice/core";
import * as v from "valibot";
import { DefaultStrategy } from "./default-strategy.js";
import { createLayout } from "./layout.js";
import {
  type DefaultRates,
  defaultPreset,
  defaultPruneShare,
  defaultRates,
  type PublishedRates,
  publishedPresets,
  publishedRates,
} from "./presets.js";
import { PublishedStrategy } from "./published-strategy.js";

export interface EepOptions {
  /** Experts that every MoE layer keeps; equal to its experts: merging without pruning. */
  keep: number;
  /** Experts per token (active-expert reduction); absent: the model's own. */
  topK?: number | undefined;
  /**
   * "default": seeded, adaptive, never proposes a plan twice. "paper" and "released": EEP as in arXiv 2407.00945
   * and as in its code, with their numbers.
   */
  preset?: "default" | "paper" | "released" | undefined;
  /**
   * Layers that share their coefficients: "layer" for none, or the number of groups of consecutive layers.
   * Default "layer"; 4 (at most the number of layers) for the preset "paper".
   */
  groups?: "layer" | number | undefined;
  /**
   * Plans of the prune phase. Default 3/7 of the run's evaluations (all of them when `mergeEvaluations` is 0);
   * the published presets have their own and count repeated plans, which cost nothing.
   */
  pruneEvaluations?: number | undefined;
  /** Plans of the merge phase; 0 searches subsets only. Default: what the prune phase leaves. */
  mergeEvaluations?: number | undefined;
  /**
   * "stock" (default): the merge phase moves the expert-merging matrices only, so the result is an ordinary smaller
   * checkpoint. "mapped": it moves the router maps too, which no stock checkpoint can hold; see `projectToStock`.
   */
  router?: "stock" | "mapped" | undefined;
  /** Criteria whose plans start the search. Default "all" that have scores; none for the published presets. */
  seeds?: "all" | readonly string[] | undefined;
  /**
   * Whether candidates are stopped early that are unlikely to become a parent or to beat theirs (`Candidate.rival`).
   * Default true; the published presets know no races.
   */
  race?: boolean | undefined;
  /** Single numbers of the preset, overridden. */
  rates?: Partial<DefaultRates> | Partial<PublishedRates> | undefined;
}

declare module "@coppice/core" {
  interface SearchPlugins {
    eep: EepOptions;
  }
}

const whole = (least: number) => v.pipe(v.number(), v.integer(), v.minValue(least), v.maxValue(1_000_000));

const schema = v.strictObject({
  keep: whole(1),
  topK: v.optional(whole(1)),
  preset: v.optional(v.picklist(["default", "paper", "released"]), "default"),
  groups: v.optional(v.union([v.literal("layer"), whole(1)])),
  pruneEvaluations: v.optional(whole(1)),
  mergeEvaluations: v.optional(whole(0)),
  router: v.optional(v.picklist(["stock", "mapped"]), "stock"),
  seeds: v.optional(v.union([v.literal("all"), v.array(v.string())])),
  race: v.optional(v.boolean()),
  rates: v.optional(v.record(v.string(), v.number())),
});

type Settings = v.InferOutput<typeof schema>;

/** EEP: evolutionary search over which experts to keep, then over how to merge the others into them. */
export const eep = definePlugin({
  kind: "search",
  name: "eep",
  contract: 1,
  summary: "Evolutionary expert pruning, then merging, without gradients (EEP).",
  reference: "https://arxiv.org/abs/2407.00945",
  options: schema,
  create: (options, context) =>
    options.preset === "default" ? createDefault(options, context) : createPublished(options, context),
});

function createDefault(options: Settings, context: SearchContext): SearchStrategy {
  const { keep, topK, router } = options;
  const layout = createLayout(context.model, { keep, topK, groups: options.groups ?? "layer" });
  const share = options.mergeEvaluations === 0 ? 1 : defaultPruneShare;
  const fromMerge =
    options.mergeEvaluations === undefined ? undefined : context.evaluations - options.mergeEvaluations;
  const wanted =
    options.pruneEvaluations ??
    (fromMerge !== undefined && fromMerge > 0
      ? fromMerge
      : Math.max(1, Math.round(context.evaluations * share)));
  const prune = prunes(context, keep) ? wanted : 0;
  return new DefaultStrategy(
    {
      layout,
      router,
      seeds: options.seeds ?? "all",
      rates: overridden(defaultPreset, defaultRates, options.rates),
      race: options.race ?? true,
      prune,
      merge: options.mergeEvaluations ?? Math.max(0, context.evaluations - prune),
    },
    context,
  );
}

function createPublished(options: Settings, context: SearchContext): SearchStrategy {
  const { keep, topK, router } = options;
  if (moeLayers(context.model).some(({ feedForward }) => feedForward.router.groups)) {
    throw new CoppiceError(
      "COPPICE_PLUGIN_OPTIONS",
      `options of search:eep are not usable: preset "${options.preset}" knows no router groups, which this model has`,
      { hint: 'use preset "default"' },
    );
  }
  if (options.race) {
    throw new CoppiceError(
      "COPPICE_PLUGIN_OPTIONS",
      `options of search:eep are not usable: preset "${options.preset}" evaluates every candidate on all samples`,
      { hint: 'leave race out, or use preset "default"' },
    );
  }
  const preset = publishedPresets[options.preset as keyof typeof publishedPresets];
  const layers = moeLayers(context.model).length;
  const groups = options.groups ?? (preset.groups === "layer" ? "layer" : Math.min(preset.groups, layers));
  return new PublishedStrategy(
    {
      layout: createLayout(context.model, { keep, topK, groups }),
      router,
      seeds: options.seeds ?? [],
      rates: overridden(preset.rates, publishedRates, options.rates),
      prune: prunes(context, keep) ? (options.pruneEvaluations ?? preset.prune) : 0,
      merge: options.mergeEvaluations ?? preset.merge,
    },
    context,
  );
}

/** False when every expert is kept, so that there is nothing to choose. */
function prunes(context: SearchContext, keep: number): boolean {
  return moeLayers(context.model).some((layer) => layer.feedForward.experts.length > keep);
}

/** `preset` with the rates that were given. */
function overridden<T extends object>(
  preset: T,
  rates: v.GenericSchema<unknown, { [K in keyof T]?: T[K] | undefined }>,
  given: Settings["rates"],
): T {
  const result = v.safeParse(rates, given ?? {});
  if (!result.success) {
    const problems = result.issues.map((issue) => `rates.${v.getDotPath(issue) ?? ""}: ${issue.message}`);
    throw new CoppiceError(
      "COPPICE_PLUGIN_OPTIONS",
      `options of search:eep are not usable: ${problems.join("; ")}`,
      {
        hint: "the presets have different rates; see the page of the plugin",
        details: { plugin: "search:eep", problems },
      },
    );
  }
  const defined = Object.entries(result.output).filter(([, value]) => value !== undefined);
  return { ...preset, ...Object.fromEntries(defined) };
}

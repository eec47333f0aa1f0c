import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { type Inspection, inspectModel } from "@coppice/checkpoint";
import {
  createPlan,
  isCoppiceError,
  type ModelSize,
  type MoeModel,
  modelSize,
  moeLayers,
  type Plan,
  selectExperts,
} from "@coppice/core";
import { formatBytes, formatCount, formatShare } from "@coppice/report";
import type { CliContext } from "../context.js";
import { examples, wholeNumber } from "../options.js";
import { ruleWords } from "../terminal/attention-plan.js";
import { formatFacts, formatTable } from "../terminal/format.js";
import { openModel } from "../work/open-model.js";
import { readPlan } from "../work/plan-file.js";

export function inspectCommand(context: CliContext): CommandUnknownOpts {
  return new Command("inspect")
    .description(
      "Says what a checkpoint is and what pruning would save. Reads headers only, so it takes a moment for any size, and the weights need not be there.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(new Option("--keep <n>", "size with n experts per layer").argParser(wholeNumber(1)))
    .addOption(new Option("--plan <file>", "size under this plan"))
    .addHelpText(
      "after",
      examples("coppice inspect ./Mixtral-8x7B-v0.1", "coppice inspect ./model --keep 4 --json"),
    )
    .action(async (path, options) => {
      await using opened = await openModel(path, context, { headersOnly: true });
      const { model } = opened.checkpoint;
      const plan = options.plan === undefined ? undefined : await readPlan(options.plan, model, context);
      const inspection = await inspectModel(opened.checkpoint, plan);
      const shrink = keepCounts(inspection, options.keep).flatMap((keep) => {
        try {
          return [{ keep, ...modelSize(model, keepFirst(model, keep)) }];
        } catch (error) {
          // Not every number of experts fits router groups or every layer; only one that was asked for must.
          if (options.keep === undefined && isCoppiceError(error) && error.code.startsWith("COPPICE_PLAN_"))
            return [];
          throw error;
        }
      });
      context.out.result({ name: opened.name, ...inspection, shrink }, () =>
        [facts(opened.name, inspection), "", sizeTable(inspection, shrink)].join("\n"),
      );
    });
}

function facts(name: string, model: Inspection): string {
  return formatFacts([
    ["model", `${name} (${model.title}${model.wrapper === undefined ? "" : `, inside ${model.wrapper}`})`],
    ["fingerprint", model.fingerprint ?? "unknown: needs the weights"],
    ["runs", model.editOnly === undefined ? "yes" : `no, it can only be edited: ${model.editOnly}`],
    ["layers", layerWords(model)],
    ["experts", `${model.expertsByLayer?.join(", ") ?? model.experts} per layer, top-${model.topK}`],
    ["routing", model.routing],
    ...(model.skips === undefined
      ? []
      : [
          [
            "skips experts",
            `in ${model.skips.length} of ${model.moeLayers} layers, in Coppice alone`,
          ] as const,
        ]),
    ...(model.shared === undefined ? [] : [["shared expert", model.shared] as const]),
    [
      "layout",
      `${model.layout === "separate" ? "a tensor for every matrix of an expert" : "experts in stacks"}`,
    ],
    ...(model.quantization === undefined ? [] : [["quantization", model.quantization] as const]),
    ...attentionFacts(model),
    ["unequal layers", model.unequalLayers === "exact" ? "exact in stock runtimes" : model.unequalLayers],
    ["hidden size", String(model.hiddenSize)],
    ["vocabulary", String(model.vocabSize)],
    ["context", String(model.contextLength)],
    ["files", fileWords(model)],
    ["largest tensor", `${model.largestTensor.name}, ${formatBytes(model.largestTensor.bytes)}`],
    ["one expert less", `saves ${formatBytes(model.perExpert.bytes)} over all layers`],
  ]);
}

/** The attention plan that the checkpoint brings along. */
function attentionFacts({ attention }: Inspection): [string, string][] {
  if (!attention) return [];
  const { density, length, sinks, blockSize, rules, otherLayers } = attention;
  const counts = rules.map((rule) => `${ruleWords(rule)}: ${rule.heads} KV heads`);
  if (otherLayers > 0) counts.push(`${otherLayers} layers as the model is`);
  return [
    [
      "attention plan",
      `density ${density.toFixed(2)} at ${length} tokens, ${sinks} sinks, blocks of ${blockSize}`,
    ],
    ["spans of N tokens", counts.join("; ")],
  ];
}

function layerWords({ layers, moeLayers, mtpLayers }: Inspection): string {
  const more = mtpLayers === 0 ? "" : `, and ${mtpLayers} for multi-token prediction`;
  return `${layers}, ${moeLayers} with experts${more}`;
}

function fileWords({ shards, dtypes, headersOnly }: Inspection): string {
  const partial = headersOnly.length === 0 ? "" : `, ${headersOnly.length} without their weights`;
  return `${shards.length} safetensors${partial}, ${Object.keys(dtypes).join(", ")}`;
}

function sizeTable(full: Inspection, shrink: readonly (ModelSize & { keep: number })[]): string {
  const row = (label: string, size: ModelSize) => [
    label,
    formatBytes(size.bytes),
    formatShare(size.bytes, full.bytes),
    formatCount(size.parameters),
    formatCount(size.activeParameters),
  ];
  const rows = [row("all", full), ...shrink.map((size) => row(`${size.keep} per layer`, size))];
  if (full.output) rows.push(row("by the plan", { ...full.output, bytes: full.output.tensorBytes }));
  return formatTable(["experts kept", "weights", "of full", "parameters", "active"], rows, [1, 2, 3, 4]);
}

/** Three quarters, half, a quarter: enough to see the slope. */
function keepCounts({ experts, topK }: Inspection, wanted: number | undefined): number[] {
  if (wanted !== undefined) return [wanted];
  const counts = [0.75, 0.5, 0.25].map((share) => Math.round(share * experts));
  return [...new Set(counts)].filter((keep) => keep >= topK && keep < experts);
}

/** Experts of a layer are equal in size, so which ones are kept does not matter here. */
function keepFirst(model: MoeModel, keep: number): Plan {
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }) => {
      return {
        layer: index,
        experts: selectExperts(feedForward, new Float64Array(feedForward.experts.length), keep, index),
      };
    }),
  );
}

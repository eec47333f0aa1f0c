import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { fitSkipping, type SkippingPreset, skippingPresets } from "@coppice/allocate";
import { CoppiceError, type SampleField } from "@coppice/core";
import { formatScore } from "@coppice/report";
import type { CliContext } from "../../context.js";
import {
  backendOption,
  backendSetOption,
  dataLimitOption,
  dataOption,
  examples,
  numberIn,
  planOption,
  statsOption,
  wholeNumber,
  workersOption,
} from "../../options.js";
import { formatFacts, formatTable } from "../../terminal/format.js";
import { findStatistics } from "../../work/criterion-scores.js";
import { openModel } from "../../work/open-model.js";
import { readPlan, writePlan } from "../../work/plan-file.js";
import { checkFileAbsent } from "../../work/write-checkpoint.js";
import { planOutOption } from "./plan-output.js";

export function skipCommand(context: CliContext): CommandUnknownOpts {
  return new Command("skip")
    .summary("how often layers skip experts of a token")
    .description(
      "Fits the thresholds of gate weights below which a chosen expert does not run to a sample of tokens, and says how many " +
        "experts run per token then. Rules are part of the plan; stock checkpoints cannot hold them, the runtime layout does.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option(
        "--rule <name>",
        "naee: medians; odp: medians in the least sensitive layers; ratio, top-p: by --average",
      )
        .choices(skippingPresets)
        .default("naee" as const),
    )
    .addOption(
      new Option("--average <n>", "ratio, top-p: experts per token that run on average").argParser(
        numberIn(1, Number.POSITIVE_INFINITY),
      ),
    )
    .addOption(
      new Option(
        "--spare <share>",
        "share of a prompt's tokens, the most important, that skip nothing; default 0.02 for odp, else 0",
      ).argParser(numberIn(0, 1)),
    )
    .addOption(
      new Option("--layers <n>", "odp: layers that skip; default 10 of 32").argParser(wholeNumber(1)),
    )
    .addOption(planOption)
    .addOption(statsOption)
    .addOption(dataOption)
    .addOption(dataLimitOption)
    .addOption(planOutOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice calibrate ./model --data task.jsonl --sample logits --out stats.safetensors",
        "coppice allocate skip ./model --rule top-p --average 1.5 --stats stats.safetensors --out plan.json",
        "coppice eval ./model --plan plan.json --task dev.jsonl",
      ),
    )
    .action(async (path, options) => {
      const { rule, average, spare, layers } = options;
      checkRuleOptions(options);
      const out = context.path(options.out);
      checkFileAbsent(out);
      await using opened = await openModel(path, context);
      const { model, weights } = opened.checkpoint;
      const plan = options.plan === undefined ? undefined : await readPlan(options.plan, model, context);
      const sample: SampleField[] = rule === "odp" ? ["logits", "grams"] : ["logits"];
      if (plan?.layers.some(({ router }) => router)) sample.push("inputs");
      const needs = { statistics: true, weights: true, sample };
      const statistics = await findStatistics(
        opened,
        [{ name: `skipping by ${rule}`, needs }],
        options,
        context,
      );
      const fitted = await fitSkipping({
        model,
        weights,
        statistics,
        preset: rule,
        signal: context.signal,
        ...(plan && { plan }),
        ...(average !== undefined && { target: average }),
        ...(spare !== undefined && { spare }),
        ...(layers !== undefined && { layers }),
      });
      await writePlan(out, fitted.plan);
      context.out.result({ out, rule, ...fitted }, () =>
        [
          formatTable(
            ["layer", "rule", "threshold", "experts per token"],
            fitted.layers.map((layer) => [
              String(layer.layer),
              layer.skip?.rule ?? "none",
              layer.skip ? formatScore(layer.skip.threshold) : "",
              `${formatScore(layer.average)} of ${layer.topK}`,
            ]),
            [0, 2],
          ),
          "",
          formatFacts([
            ["average", formatScore(fitted.average)],
            ["wrote", out],
          ]),
        ].join("\n"),
      );
    });
}

/** What the fit refuses too, but only after statistics are collected. */
function checkRuleOptions(options: {
  readonly rule: SkippingPreset;
  readonly average?: number;
  readonly layers?: number;
}): void {
  const { rule, average, layers } = options;
  const fitsAverage = rule === "ratio" || rule === "top-p";
  if (fitsAverage !== (average !== undefined)) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      fitsAverage
        ? `--rule ${rule} needs --average`
        : `--average is for the rules ratio and top-p, not ${rule}`,
    );
  }
  if (layers !== undefined && rule !== "odp") {
    throw new CoppiceError("COPPICE_USAGE", `--layers is for the rule odp, not ${rule}`);
  }
}

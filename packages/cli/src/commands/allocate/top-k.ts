import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { allocate, sampledTopK, topKChoices, topKNeeds, topKPlan } from "@coppice/allocate";
import { CoppiceError, moeLayers } from "@coppice/core";
import { formatScore } from "@coppice/report";
import type { CliContext } from "../../context.js";
import {
  backendOption,
  backendSetOption,
  dataLimitOption,
  dataOption,
  examples,
  numberIn,
  statsOption,
  workersOption,
} from "../../options.js";
import { formatFacts } from "../../terminal/format.js";
import { findStatistics } from "../../work/criterion-scores.js";
import { openModel } from "../../work/open-model.js";
import { writePlan } from "../../work/plan-file.js";
import { checkFileAbsent } from "../../work/write-checkpoint.js";
import { layoutOption, planOutOption } from "./plan-output.js";

export function topKCommand(context: CliContext): CommandUnknownOpts {
  return new Command("top-k")
    .summary("how many experts run per token in every layer")
    .description(
      "Gives every layer a top-k so that the outputs of all layers change least within a budget of experts per token. What a " +
        "smaller top-k changes is known from a sample of tokens; the choice is exact.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option("--average <n>", "experts per token and layer on average, such as 1.5")
        .argParser(numberIn(1, Number.POSITIVE_INFINITY))
        .makeOptionMandatory(),
    )
    .option("--uniform", "the same top-k in every layer, as stock configs need")
    .addOption(statsOption)
    .addOption(dataOption)
    .addOption(dataLimitOption)
    .addOption(layoutOption)
    .addOption(planOutOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice calibrate ./model --data task.jsonl --sample logits,grams --out stats.safetensors",
        "coppice allocate top-k ./model --average 1.5 --stats stats.safetensors --layout runtime --out plan.json",
      ),
    )
    .action(async (path, options) => {
      const { average, uniform = false, layout } = options;
      const out = context.path(options.out);
      checkFileAbsent(out);
      await using opened = await openModel(path, context);
      const { model, weights } = opened.checkpoint;
      if (!uniform && layout === "stock") {
        throw new CoppiceError("COPPICE_PLAN_EXPORT", "stock checkpoints state one top-k for all layers", {
          hint: "give --uniform, or --layout runtime for checkpoints that coppice loads",
        });
      }
      const needs = { statistics: true, weights: true, ...topKNeeds };
      const statistics = await findStatistics(
        opened,
        [{ name: "top-k allocation", needs }],
        options,
        context,
      );
      const costs = await sampledTopK({ model, weights, statistics, signal: context.signal });
      const budget = Math.floor(average * moeLayers(model).length);
      const { layers, cost, size } = allocate(topKChoices(model, costs), { budget, uniform });
      const plan = topKPlan(model, { layers, cost, size });
      await writePlan(out, plan);
      context.out.result({ out, layers, costs, cost, size, budget, layout, plan }, () =>
        formatFacts([
          ["top-k", layers.map(({ count }) => count).join(", ")],
          ["average", formatScore(size / layers.length)],
          ["wrote", out],
        ]),
      );
    });
}

import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { allocate, expertChoices, expertPlan } from "@coppice/allocate";
import { exportShape } from "@coppice/checkpoint";
import { CoppiceError, type MoeModel, modelSize, moeLayers } from "@coppice/core";
import { formatBytes, formatShare } from "@coppice/report";
import type { CliContext } from "../../context.js";
import {
  backendOption,
  backendSetOption,
  byteCount,
  criterionOption,
  criterionSetOption,
  dataLimitOption,
  dataOption,
  examples,
  numberIn,
  seedOption,
  statsOption,
  wholeNumber,
  workersOption,
} from "../../options.js";
import { formatFacts } from "../../terminal/format.js";
import { criterionScores } from "../../work/criterion-scores.js";
import { openModel } from "../../work/open-model.js";
import { writePlan } from "../../work/plan-file.js";
import { checkFileAbsent } from "../../work/write-checkpoint.js";
import { checkUnevenFits, layoutOption, planOutOption } from "./plan-output.js";

export function expertsCommand(context: CliContext): CommandUnknownOpts {
  return new Command("experts")
    .summary("how many experts every layer keeps")
    .description(
      "Keeps the experts that a criterion scores highest over all layers, as many as the budget allows: a threshold over all " +
        "layers with a floor per layer, or the same number in every layer.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option("--keep <n>", "experts per layer on average, such as 4 or 4.5").argParser(
        numberIn(1, Number.POSITIVE_INFINITY),
      ),
    )
    .addOption(
      new Option(
        "--bytes <size>",
        "instead: bytes of all experts and their router rows, such as 8GB",
      ).argParser(byteCount),
    )
    .option("--uniform", "the same number of experts in every layer, as stock configs of most families need")
    .addOption(
      new Option("--floor <n>", "fewest experts of a layer; default: its top-k").argParser(wholeNumber(1)),
    )
    .addOption(
      new Option("--normalize <how>", "what makes scores of different layers comparable")
        .choices(["none", "sum", "max"] as const)
        .default("sum" as const),
    )
    .addOption(criterionOption)
    .addOption(criterionSetOption)
    .addOption(statsOption)
    .addOption(dataOption)
    .addOption(dataLimitOption)
    .addOption(seedOption)
    .addOption(layoutOption)
    .addOption(planOutOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice allocate experts ./model --keep 4 --stats stats.safetensors --layout runtime --out plan.json",
        "coppice allocate experts ./model --bytes 8GB --uniform --stats stats.safetensors --out plan.json",
      ),
    )
    .action(async (path, options) => {
      const { keep, bytes, uniform = false, layout, floor, normalize } = options;
      if ((keep === undefined) === (bytes === undefined)) {
        throw new CoppiceError("COPPICE_USAGE", "give the budget either by --keep or by --bytes");
      }
      const out = context.path(options.out);
      checkFileAbsent(out);
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      checkKeep(model, keep);
      if (!uniform) checkUnevenFits(opened, layout, "numbers of experts");
      const scores = await criterionScores(opened, options, context);
      const choices = expertChoices(model, scores, {
        normalize,
        size: bytes === undefined ? "experts" : "bytes",
        ...(floor !== undefined && { floor }),
      });
      const budget = bytes ?? Math.floor((keep as number) * moeLayers(model).length);
      const { layers, cost, size } = allocate(choices, { budget, uniform });
      const plan = expertPlan(model, { layers, cost, size }, scores);
      // Groups of different layers have to fit together, too.
      exportShape(model, plan, layout);
      await writePlan(out, plan);
      const [before, after] = [modelSize(model).bytes, modelSize(model, plan).bytes];
      context.out.result({ out, layers, cost, size, budget, layout, bytes: after, plan }, () =>
        formatFacts([
          ["experts kept", layers.map(({ count }) => count).join(", ")],
          ["weights", `${formatBytes(after)} of ${formatBytes(before)} (${formatShare(after, before)})`],
          ["wrote", out],
        ]),
      );
    });
}

/** More than there are would not be an error of the allocation: it leaves out experts that cost nothing. */
function checkKeep(model: MoeModel, keep: number | undefined): void {
  const experts = moeLayers(model).map(({ feedForward }) => feedForward.experts.length);
  const most = experts.reduce((sum, count) => sum + count, 0) / experts.length;
  if (keep === undefined || keep <= most) return;
  throw new CoppiceError(
    "COPPICE_PLAN_KEEP",
    `keep=${keep} is not possible: layers have ${Number(most.toFixed(2))} experts on average`,
    { details: { keep, most } },
  );
}

import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { moeLayers } from "@coppice/core";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  criterionOption,
  criterionSetOption,
  dataLimitOption,
  dataOption,
  examples,
  seedOption,
  statsOption,
  workersOption,
} from "../options.js";
import { formatTable } from "../terminal/format.js";
import { criterionScores } from "../work/criterion-scores.js";
import { openModel } from "../work/open-model.js";

export function scoreCommand(context: CliContext): CommandUnknownOpts {
  return new Command("score")
    .description("Scores every expert by a criterion: the larger the score, the more the expert matters.")
    .argument("<model>", "checkpoint folder")
    .addOption(criterionOption)
    .addOption(criterionSetOption)
    .addOption(statsOption)
    .addOption(dataOption)
    .addOption(dataLimitOption)
    .addOption(seedOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice score ./model --criterion reap --stats stats.safetensors",
        "coppice score ./model --criterion weight-magnitude --json",
      ),
    )
    .action(async (path, options) => {
      await using opened = await openModel(path, context);
      const scores = await criterionScores(opened, options, context);
      const layers = moeLayers(opened.checkpoint.model);
      const data = {
        criterion: options.criterion,
        layers: layers.map(({ index }) => index),
        scores: scores.map((row) => Array.from(row)),
      };
      context.out.result(data, () => scoreTable(scores, data.layers));
    });
}

/** One row per layer; experts from the most to the least important when they are too many for columns. */
function scoreTable(scores: readonly Float64Array[], layers: readonly number[]): string {
  const columns = Math.max(0, ...scores.map(({ length }) => length));
  if (columns > 16) {
    return formatTable(
      ["layer", "experts, the most important first"],
      scores.map((row, i) => [
        String(layers[i]),
        Array.from(row, (score, expert) => ({ score, expert }))
          .sort((a, b) => b.score - a.score || a.expert - b.expert)
          .map(({ expert }) => expert)
          .join(" "),
      ]),
      [0],
    );
  }
  return formatTable(
    ["layer", ...Array.from({ length: columns }, (_, expert) => `expert ${expert}`)],
    scores.map((row, i) => [String(layers[i]), ...Array.from(row, (score) => score.toPrecision(4))]),
    Array.from({ length: columns + 1 }, (_, i) => i),
  );
}

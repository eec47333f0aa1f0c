import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { planFromScores } from "@coppice/core";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  criterionOption,
  criterionSetOption,
  dataLimitOption,
  dataOption,
  dryRunOption,
  examples,
  maxShardOption,
  outOption,
  seedOption,
  statsOption,
  wholeNumber,
  workersOption,
} from "../options.js";
import { checkKeepFits } from "../work/check-keep-fits.js";
import { criterionScores } from "../work/criterion-scores.js";
import { openModel } from "../work/open-model.js";
import { checkAbsent, describeWritten, writeCheckpoint } from "../work/write-checkpoint.js";

export function pruneCommand(context: CliContext): CommandUnknownOpts {
  return new Command("prune")
    .description(
      "Keeps the experts that a criterion ranks highest and writes the smaller checkpoint. One pass, no search; " +
        "`coppice search` finds better plans.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option("--keep <n>", "experts that every layer keeps")
        .argParser(wholeNumber(1))
        .makeOptionMandatory(),
    )
    .addOption(criterionOption)
    .addOption(criterionSetOption)
    .addOption(statsOption)
    .addOption(dataOption)
    .addOption(dataLimitOption)
    .addOption(seedOption)
    .addOption(outOption)
    .addOption(dryRunOption)
    .addOption(maxShardOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice prune ./model --keep 4 --criterion reap --data task.jsonl --out ./small",
        "coppice prune ./model --keep 4 --criterion random --seed 3 --out ./small --dry-run",
      ),
    )
    .action(async (path, options) => {
      const { keep, criterion, seed } = options;
      const out = context.path(options.out);
      checkAbsent(out);
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      checkKeepFits(model, keep);
      const plan = planFromScores(model, await criterionScores(opened, options, context), keep);
      const written = await writeCheckpoint(
        {
          opened,
          plan,
          out,
          dryRun: options.dryRun,
          maxShardBytes: options.maxShardSize,
          metadata: { command: "prune", criterion, keep, seed, options: options.set ?? {} },
        },
        context,
      );
      context.out.result({ ...written, criterion, plan }, () => describeWritten(written));
    });
}

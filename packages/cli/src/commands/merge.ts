import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { createPlan, Rng, RunEmitter, unusedExperts } from "@coppice/core";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  dataLimitOption,
  dataOption,
  dryRunOption,
  examples,
  maxShardOption,
  outOption,
  seedOption,
  settings,
  statsOption,
  wholeNumber,
  workersOption,
} from "../options.js";
import { loadPlugin } from "../plugins/find-plugin.js";
import { warnUnused } from "../terminal/unused-experts.js";
import { checkKeepFits } from "../work/check-keep-fits.js";
import { findStatistics } from "../work/criterion-scores.js";
import { openModel } from "../work/open-model.js";
import { checkAbsent, describeWritten, writeCheckpoint } from "../work/write-checkpoint.js";

export function mergeCommand(context: CliContext): CommandUnknownOpts {
  return new Command("merge")
    .description(
      "Merges the experts of every layer into fewer and writes the smaller checkpoint, in the stock layout with really " +
        "fewer experts. One pass, no search.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option("--keep <n>", "experts that every layer is left with")
        .argParser(wholeNumber(1))
        .makeOptionMandatory(),
    )
    .addOption(
      new Option(
        "--merger <name>",
        "merger plugin, such as m-smoe, hc-smoe, ream, dern, logit-clusters, average",
      ).default("m-smoe"),
    )
    .addOption(new Option("--set <key=value>", "option of the merger; repeatable").argParser(settings))
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
        "coppice merge ./model --keep 4 --data task.jsonl --out ./small",
        "coppice merge ./model --keep 4 --merger hc-smoe --set align=weights --stats stats.safetensors --out ./small",
        "coppice merge ./model --keep 4 --merger average --out ./small",
      ),
    )
    .action(async (path, options) => {
      const { keep, merger: name, seed } = options;
      const out = context.path(options.out);
      checkAbsent(out);
      await using opened = await openModel(path, context);
      const { model, weights } = opened.checkpoint;
      checkKeepFits(model, keep);
      const { plugin } = await loadPlugin("merger", name, context.io.cwd);
      const merger = await plugin.create(options.set ?? {}, undefined);
      const { needs } = merger;
      const statistics = needs.statistics
        ? await findStatistics(opened, [{ name, needs }], options, context)
        : undefined;
      if (statistics) warnUnused(unusedExperts(statistics), context);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      const layers = await merger.merge({
        model,
        keep,
        weights,
        rng: Rng.fromSeed(seed),
        signal: context.signal,
        emitter,
        ...(statistics && { statistics }),
      });
      context.out.settle();
      const plan = createPlan(model, layers);
      const written = await writeCheckpoint(
        {
          opened,
          plan,
          out,
          dryRun: options.dryRun,
          maxShardBytes: options.maxShardSize,
          metadata: { command: "merge", merger: name, keep, seed, options: options.set ?? {} },
        },
        context,
      );
      context.out.result({ ...written, merger: name, plan }, () => describeWritten(written));
    });
}

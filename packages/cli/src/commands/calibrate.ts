import { Command, type CommandUnknownOpts, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { writeStatistics } from "@coppice/calibrate/node";
import { type ExtraField, extraFields, RunEmitter, unusedExperts } from "@coppice/core";
import type { CliContext } from "../context.js";
import { backendOption, backendSetOption, examples, list, wholeNumber, workersOption } from "../options.js";
import { formatFacts } from "../terminal/format.js";
import { warnUnused } from "../terminal/unused-experts.js";
import { openPool } from "../work/model-pool.js";
import { openModel } from "../work/open-model.js";
import { readTask } from "../work/task-file.js";
import { checkAbsent } from "../work/write-checkpoint.js";

export function calibrateCommand(context: CliContext): CommandUnknownOpts {
  return new Command("calibrate")
    .description(
      "Runs the model once over your data and sums what its routers choose and its experts put out. " +
        "Criteria score experts from these statistics, and files of disjoint data add up.",
    )
    .argument("<model>", "checkpoint folder")
    .requiredOption("--data <file>", "task file (prompts with their answers) or text")
    .requiredOption("--out <file>", "statistics file to write, such as stats.safetensors")
    .addOption(new Option("--limit <n>", "only the first n samples").argParser(wholeNumber(1)))
    .option("--prompts-only", "leave the answers out")
    .addOption(
      new Option(
        "--with <sums>",
        `what to collect beside the rest, separated by commas: ${extraFields.join(", ")}`,
      ).argParser(extras),
    )
    .option("--chat", "put prompts into the checkpoint's chat template")
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText("after", examples("coppice calibrate ./model --data task.jsonl --out stats.safetensors"))
    .action(async (path, options) => {
      const started = performance.now();
      const out = context.path(options.out);
      checkAbsent(out);
      await using opened = await openModel(path, context);
      const data = await readTask(options.data, context);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      await using pool = await openPool(opened, options, context);
      const statistics = await pool.collectStatistics({
        task: data,
        emitter,
        signal: context.signal,
        chat: options.chat ?? false,
        promptsOnly: options.promptsOnly ?? false,
        ...(options.with && { extras: options.with }),
        ...(options.limit !== undefined && { limit: options.limit }),
      });
      context.out.settle();
      await writeStatistics(out, statistics, { signal: context.signal });
      const seconds = (performance.now() - started) / 1000;
      const { tokens, sources } = statistics;
      const unused = unusedExperts(statistics);
      warnUnused(unused, context);
      context.out.result({ out, tokens, sources, unused, seconds }, () =>
        formatFacts([
          ["wrote", out],
          ["tokens", tokens.toLocaleString("en")],
          ["time", `${seconds.toFixed(1)} s`],
        ]),
      );
    });
}

/** `change,peak` */
function extras(text: string): ExtraField[] {
  return list(text).map((name) => {
    const field = extraFields.find((known) => known === name);
    if (field === undefined) throw new InvalidArgumentError(`expected some of ${extraFields.join(", ")}.`);
    return field;
  });
}

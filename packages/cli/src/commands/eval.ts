import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { RunEmitter } from "@coppice/core";
import { type Metric, metrics } from "@coppice/evaluate";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  examples,
  executorOption,
  executorSetOption,
  planOption,
  sampleLimitOption,
  workersOption,
} from "../options.js";
import { formatFacts, formatInterval } from "../terminal/format.js";
import { openModel } from "../work/open-model.js";
import { readPlan } from "../work/plan-file.js";
import { readTask } from "../work/task-file.js";
import { openWorkPool } from "../work/work-pool.js";

export function evalCommand(context: CliContext): CommandUnknownOpts {
  return new Command("eval")
    .description("Scores a model on a task, with a 95 % interval.")
    .argument("<model>", "checkpoint folder")
    .requiredOption(
      "--task <file>",
      "task file: JSON lines with prompt and answer, prompt and choices, or text",
    )
    .addOption(sampleLimitOption)
    .option("--metric <name>", `${Object.keys(metrics).join(", ")}; default: by the task's form`)
    .addOption(planOption)
    .option("--chat", "put prompts into the checkpoint's chat template")
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addOption(executorOption)
    .addOption(executorSetOption)
    .addHelpText(
      "after",
      examples(
        "coppice eval ./model --task dev.jsonl",
        "coppice eval ./model --task dev.jsonl --plan run/plan.json --limit 100 --json",
      ),
    )
    .action(async (path, options) => {
      const started = performance.now();
      await using opened = await openModel(path, context);
      const task = await readTask(options.task, context);
      const plan =
        options.plan === undefined
          ? undefined
          : await readPlan(options.plan, opened.checkpoint.model, context);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      await using pool = await openWorkPool(opened, options, context, emitter);
      const score = await pool.evaluateTask({
        task,
        emitter,
        signal: context.signal,
        chat: options.chat ?? false,
        ...(options.metric !== undefined && { metric: options.metric }),
        ...(options.limit !== undefined && { limit: options.limit }),
        ...(plan && { plan }),
      });
      context.out.settle();
      const { metric, value, low, high, samples } = score;
      const seconds = (performance.now() - started) / 1000;
      context.out.result({ task: task.name, metric, value, low, high, samples, seconds }, () =>
        formatFacts([
          ["task", `${task.name}, ${samples} samples`],
          [metric, `${formatInterval(score)} at 95 %`],
          ["", metrics[metric as Metric].summary],
          ["time", `${seconds.toFixed(1)} s`],
        ]),
      );
    });
}

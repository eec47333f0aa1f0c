import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { CoppiceError, RunEmitter } from "@coppice/core";
import { defaultDepths, type Metric, metrics } from "@coppice/evaluate";
import type { CliContext } from "../context.js";
import {
  attentionOption,
  attentionSetOption,
  backendOption,
  backendSetOption,
  examples,
  executorOption,
  executorSetOption,
  listOf,
  numberIn,
  planOption,
  sampleLimitOption,
  wholeNumber,
  workersOption,
} from "../options.js";
import { formatFacts, formatInterval } from "../terminal/format.js";
import { longContextText } from "../terminal/long-context.js";
import { attentionText, chooseAttention } from "../work/attention-source.js";
import {
  type LongContextKind,
  type LongContextScores,
  longContextJob,
  longContextKinds,
  measuredMetric,
  wantedLengths,
} from "../work/long-context.js";
import { openModel } from "../work/open-model.js";
import { readPlan } from "../work/plan-file.js";
import { readTask } from "../work/task-file.js";
import { openWorkPool } from "../work/work-pool.js";

const longGroup = "Long contexts:";
const defaultSamples = 20;

export function evalCommand(context: CliContext): CommandUnknownOpts {
  return new Command("eval")
    .description(
      "Scores a model on a task, with a 95 % interval, or on contexts of chosen lengths: retrieval among many keys, a fact among " +
        "confusing ones, or perplexity by position.",
    )
    .argument("<model>", "checkpoint folder")
    .option("--task <file>", "task file: JSON lines with prompt and answer, prompt and choices, or text")
    .addOption(sampleLimitOption)
    .option("--metric <name>", `${Object.keys(metrics).join(", ")}; default: by the task's form`)
    .addOption(planOption)
    .addOption(attentionOption)
    .addOption(attentionSetOption)
    .option("--chat", "put prompts into the checkpoint's chat template")
    .addOption(
      new Option("--long-context <kind>", "instead of a task")
        .choices<readonly LongContextKind[]>(longContextKinds)
        .helpGroup(longGroup),
    )
    .addOption(
      new Option(
        "--lengths <list>",
        "tokens of contexts; default: 1024, 2048 and 4096 as far as the model goes",
      )
        .argParser(listOf(wholeNumber(1)))
        .helpGroup(longGroup),
    )
    .addOption(
      new Option(
        "--depths <list>",
        `where the answer stands, from 0 (first) to 1 (last); default: ${defaultDepths.join(", ")}`,
      )
        .argParser(listOf(numberIn(0, 1)))
        .helpGroup(longGroup),
    )
    .addOption(
      new Option("--samples <n>", `samples of every length and depth; default: ${defaultSamples}`)
        .argParser(wholeNumber(1))
        .helpGroup(longGroup),
    )
    .addOption(
      new Option("--confusing <n>", "facts: how many others are easily taken for the one; default: 8")
        .argParser(wholeNumber(0))
        .helpGroup(longGroup),
    )
    .addOption(
      new Option("--parts <n>", "positions: parts of a context that get a perplexity each; default: 8")
        .argParser(wholeNumber(1))
        .helpGroup(longGroup),
    )
    .addOption(
      new Option(
        "--data <file>",
        "positions: texts to predict; facts: texts to hide them in, default: plain sentences",
      ).helpGroup(longGroup),
    )
    .addOption(
      new Option("--seed <n>", "seed of the samples; default: 1")
        .argParser(wholeNumber(0))
        .helpGroup(longGroup),
    )
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
        "coppice eval ./model --long-context retrieval --lengths 1024,2048 --attention attention.json",
        "coppice eval ./model --long-context positions --data book.txt --lengths 4096 --limit 20",
      ),
    )
    .action(async (path, options) => {
      const started = performance.now();
      const kind = options.longContext;
      if ((kind === undefined) === (options.task === undefined)) {
        throw new CoppiceError("COPPICE_USAGE", "give either --task <file> or --long-context <kind>");
      }
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      const plan = options.plan === undefined ? undefined : await readPlan(options.plan, model, context);
      const attention = await chooseAttention(opened, options, context);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      const seconds = () => (performance.now() - started) / 1000;

      if (kind !== undefined) {
        const { samples = defaultSamples, seed = 1 } = options;
        const job = await longContextJob(opened, { ...options, kind, samples, seed }, context);
        await using pool = await openWorkPool(opened, options, context, emitter, attention?.source.plan);
        const scores = await job.run(pool, { plan, attention: attention?.source }, emitter);
        context.out.settle();
        const lengths = wantedLengths(options, model.contextLength);
        context.out.result(
          {
            ...longContextResult(scores),
            ...(attention && { attention: attention.name }),
            seconds: seconds(),
          },
          () =>
            [
              formatFacts([
                ["long contexts", kind],
                [measuredMetric(scores), metrics[measuredMetric(scores)].summary],
                ...(attention ? [["attention", attentionText(attention, lengths)] as const] : []),
                ["time", `${seconds().toFixed(1)} s`],
              ]),
              longContextText(scores),
            ].join("\n\n"),
        );
        return;
      }

      const foreign = longContextOptions.find((name) => options[name] !== undefined);
      if (foreign !== undefined) {
        throw new CoppiceError("COPPICE_USAGE", `--${foreign} is for --long-context, and a task is given`);
      }
      const task = await readTask(options.task as string, context);
      await using pool = await openWorkPool(opened, options, context, emitter, attention?.source.plan);
      const score = await pool.evaluateTask({
        task,
        emitter,
        signal: context.signal,
        chat: options.chat ?? false,
        ...(options.metric !== undefined && { metric: options.metric }),
        ...(options.limit !== undefined && { limit: options.limit }),
        ...(plan && { plan }),
        ...(attention && { attention: attention.source }),
      });
      context.out.settle();
      const { metric, value, low, high, samples } = score;
      const result = { task: task.name, metric, value, low, high, samples, seconds: seconds() };
      context.out.result({ ...result, ...(attention && { attention: attention.name }) }, () =>
        formatFacts([
          ["task", `${task.name}, ${samples} samples`],
          [metric, `${formatInterval(score)} at 95 %`],
          ["", metrics[metric as Metric].summary],
          ...(attention ? [["attention", attentionText(attention, [])] as const] : []),
          ["time", `${seconds().toFixed(1)} s`],
        ]),
      );
    });
}

const longContextOptions = ["lengths", "depths", "samples", "confusing", "parts", "data", "seed"] as const;

/** What `--json` prints of the scores. */
function longContextResult(scores: LongContextScores): Readonly<Record<string, unknown>> {
  const metric = measuredMetric(scores);
  if (scores.kind === "positions") {
    const { kind, name, windows } = scores;
    return { longContext: kind, data: name, metric, lengths: windows };
  }
  const { value, low, high, samples } = scores.score;
  return { longContext: scores.kind, metric, value, low, high, samples, ...scores.places };
}

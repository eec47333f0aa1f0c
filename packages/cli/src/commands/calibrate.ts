import { Command, type CommandUnknownOpts, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import type { CollectedStatistics, StreamEstimate } from "@coppice/calibrate";
import { writeStatistics } from "@coppice/calibrate/node";
import {
  CoppiceError,
  extraFields,
  extrasOf,
  RunEmitter,
  type SampleField,
  sampleFields,
  unusedExperts,
} from "@coppice/core";
import type { StatisticsOptions } from "@coppice/executor-local";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  byteCount,
  dataKindOption,
  examples,
  list,
  newTokensOption,
  sampleLimitOption,
  wholeNumber,
  workersOption,
} from "../options.js";
import { formatFacts } from "../terminal/format.js";
import { describeSample, sampleOf } from "../terminal/sample.js";
import { warnUnused } from "../terminal/unused-experts.js";
import { openPool, type PoolOptions } from "../work/model-pool.js";
import { type OpenModel, openModel } from "../work/open-model.js";
import { streamStatistics } from "../work/stream-statistics.js";
import { readTask } from "../work/task-file.js";
import { defaultSampleTokens } from "../work/wanted-statistics.js";
import { checkFileAbsent } from "../work/write-checkpoint.js";

const collectGroup = "Collecting more:";
const streamGroup = "Models larger than memory:";

export function calibrateCommand(context: CliContext): CommandUnknownOpts {
  return new Command("calibrate")
    .description(
      "Runs the model once over your data and sums what its routers choose and its experts put out. " +
        "Criteria score experts from these statistics, and files of disjoint data add up.",
    )
    .argument("<model>", "checkpoint folder")
    .requiredOption("--data <file>", "task file (prompts with their answers) or text")
    .requiredOption("--out <file>", "statistics file to write, such as stats.safetensors")
    .addOption(sampleLimitOption)
    .addOption(dataKindOption)
    .addOption(newTokensOption)
    .option("--chat", "put prompts into the checkpoint's chat template")
    .addOption(
      new Option(
        "--with <sums>",
        `sums to collect beside the rest, separated by commas: ${extraFields.join(", ")}`,
      )
        .argParser(fieldsOf(extraFields))
        .helpGroup(collectGroup),
    )
    .addOption(
      new Option("--sample <fields>", `keep single tokens, with some of ${sampleFields.join(", ")}`)
        .argParser(fieldsOf(sampleFields))
        .helpGroup(collectGroup),
    )
    .addOption(
      new Option("--sample-tokens <n>", `--sample: how many; default ${defaultSampleTokens}`)
        .argParser(wholeNumber(1))
        .helpGroup(collectGroup),
    )
    .addOption(
      new Option(
        "--memory <size>",
        "load as many layers at a time as fit, such as 3GB, all data through them before the next",
      )
        .argParser(byteCount)
        .helpGroup(streamGroup),
    )
    .addOption(
      new Option(
        "--work <folder>",
        "--memory: where unfinished work is, for a later run to continue; default: <out>.partial",
      ).helpGroup(streamGroup),
    )
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice calibrate ./model --data task.jsonl --out stats.safetensors",
        "coppice calibrate ./model --data task.jsonl --kind generations --max-tokens 64 --out own.safetensors",
        "coppice calibrate ./model --data text.txt --with change,outputGram --out more.safetensors",
        "coppice calibrate ./model --data task.jsonl --sample inputs,grams --sample-tokens 512 --out tokens.safetensors",
        "coppice calibrate ./large --data task.jsonl --memory 8GB --backend-set threads=4 --out large.safetensors",
      ),
    )
    .action(async (path, options) => {
      const started = performance.now();
      const out = context.path(options.out);
      checkOptions(options);
      checkFileAbsent(out);
      await using opened = await openModel(path, context);
      const data = await readTask(options.data, context);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      const collection = {
        task: data,
        kind: options.kind,
        emitter,
        signal: context.signal,
        chat: options.chat ?? false,
        ...(options.with && { extras: options.with }),
        ...(options.sample && {
          sample: { limit: options.sampleTokens ?? defaultSampleTokens, with: options.sample },
        }),
        ...(options.limit !== undefined && { limit: options.limit }),
      };
      const keep = (statistics: CollectedStatistics) =>
        writeStatistics(out, statistics, { signal: context.signal });
      const { memory, kind } = options;
      const { statistics, estimate } =
        memory !== undefined && kind !== "generations"
          ? await streamStatistics(
              opened,
              {
                ...options,
                collection: { ...collection, kind },
                memory,
                work: context.path(options.work ?? `${options.out}.partial`),
                keep,
              },
              context,
            )
          : await collectInMemory(opened, collection, { ...options, keep }, context);
      const seconds = (performance.now() - started) / 1000;
      const { tokens, sources } = statistics;
      const unused = unusedExperts(statistics);
      warnUnused(unused, context);
      const extras = extrasOf(statistics);
      const sample = sampleOf(statistics);
      context.out.result(
        {
          out,
          tokens,
          sources,
          extras,
          sample: sample ?? null,
          unused,
          seconds,
          ...(estimate && { estimate }),
        },
        () =>
          formatFacts([
            ["wrote", out],
            ["tokens", tokens.toLocaleString("en")],
            ...(extras.length > 0 ? [["with", extras.join(", ")] as const] : []),
            ...(sample ? [["sample", describeSample(sample)] as const] : []),
            ["time", `${seconds.toFixed(1)} s`],
          ]),
      );
    });
}

interface InMemoryOptions extends PoolOptions {
  readonly maxTokens?: number;
  readonly keep: (statistics: CollectedStatistics) => Promise<void>;
}

async function collectInMemory(
  opened: OpenModel,
  collection: StatisticsOptions,
  options: InMemoryOptions,
  context: CliContext,
): Promise<{ readonly statistics: CollectedStatistics; readonly estimate?: StreamEstimate }> {
  await using pool = await openPool(opened, options, context);
  const statistics = await pool.collectStatistics({
    ...collection,
    ...(options.maxTokens !== undefined && { maxTokens: options.maxTokens }),
  });
  context.out.settle();
  await options.keep(statistics);
  return { statistics };
}

interface GivenOptions {
  readonly kind: string;
  readonly maxTokens?: number;
  readonly sample?: readonly SampleField[];
  readonly sampleTokens?: number;
  readonly memory?: number;
  readonly work?: string;
  readonly workers?: number;
}

/** Refuses options that would do nothing. */
function checkOptions({ kind, maxTokens, sample, sampleTokens, memory, work, workers }: GivenOptions): void {
  const refuse = (message: string, hint?: string) => {
    throw new CoppiceError("COPPICE_USAGE", message, hint === undefined ? {} : { hint });
  };
  if (maxTokens !== undefined && kind !== "generations") refuse("--max-tokens is for --kind generations");
  if (sampleTokens !== undefined && !sample)
    refuse("--sample-tokens needs --sample", "--sample logits keeps the least");
  if (work !== undefined && memory === undefined) refuse("--work is for --memory");
  if (memory === undefined) return;
  if (workers !== undefined)
    refuse("--memory runs one worker", "give its backend threads: --backend-set threads=4");
  if (kind === "generations") {
    refuse(
      "--memory cannot be used with --kind generations: a model writes with all of its layers at once",
      "write the generations elsewhere and give them as answers of a task",
    );
  }
}

/** `change,peak` */
function fieldsOf<F extends string>(known: readonly F[]): (text: string) => F[] {
  return (text) =>
    list(text).map((name) => {
      const field = known.find((one) => one === name);
      if (field === undefined) throw new InvalidArgumentError(`expected some of ${known.join(", ")}.`);
      return field;
    });
}

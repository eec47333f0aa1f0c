import { Command, type CommandUnknownOpts, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { type CollectedStatistics, mergeStatistics, scaleStatistics } from "@coppice/calibrate";
import { readStatistics } from "@coppice/calibrate/node";
import { CoppiceError, checkCollected, RunEmitter } from "@coppice/core";
import { calibrationSequences, loadTokenizer } from "@coppice/evaluate";
import type { ModelPool } from "@coppice/executor-local";
import {
  addProfile,
  createStore,
  type LogitSums,
  openPromptReader,
  type PromptReader,
  taskStatistics,
} from "@coppice/profiles";
import { writeProfiles } from "@coppice/profiles/node";
import type { CliContext } from "../../context.js";
import {
  backendOption,
  backendSetOption,
  criterionOption,
  criterionSetOption,
  examples,
  seedOption,
  wholeNumber,
  workersOption,
} from "../../options.js";
import { backendHere } from "../../work/backend-here.js";
import { type NamedCriterion, openCriterion, scoreBy } from "../../work/criterion-scores.js";
import { openPool, type PoolOptions } from "../../work/model-pool.js";
import { type OpenModel, openModel } from "../../work/open-model.js";
import { readTask } from "../../work/task-file.js";
import { wantedStatistics } from "../../work/wanted-statistics.js";
import { checkFileAbsent } from "../../work/write-checkpoint.js";
import { profileTable } from "./stores.js";

/** A task and the file that says what it is. */
interface NamedFile {
  readonly name: string;
  readonly file: string;
}

/** What a profile is made from. */
interface TaskData {
  readonly name: string;
  readonly statistics: CollectedStatistics;
  /** Of the prompts alone; absent for a statistics file, which is all that is known of the task. */
  readonly prompts?: LogitSums;
}

export function buildCommand(context: CliContext): CommandUnknownOpts {
  return new Command("build")
    .summary("make profiles from data or statistics of tasks")
    .description(
      "Makes one profile per task: a criterion ranks the experts on prompts with their answers, and the first router's " +
        "logits on the prompts alone are what prompts are compared with later.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option("--data <name=file>", "a task and its task file or text; repeatable").argParser(namedFiles),
    )
    .addOption(
      new Option(
        "--stats <name=file>",
        "a task and its statistics file of `coppice calibrate`, best of prompts alone; repeatable",
      ).argParser(namedFiles),
    )
    .option("--general <name>", "add a general profile of all these tasks together, each weighing the same")
    .addOption(
      new Option("--statistic <name>", "what prompts are compared by")
        .choices(taskStatistics)
        .default("logit-gram" as const),
    )
    .requiredOption("--out <file>", "file of profiles to write, such as profiles.json")
    .addOption(criterionOption)
    .addOption(criterionSetOption)
    .addOption(
      // Beside --stats too: a task may come from either.
      new Option("--limit <n>", "only the first n samples of every --data").argParser(wholeNumber(1)),
    )
    .addOption(seedOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice profile build ./model --data math=math.jsonl --data code=code.jsonl --limit 100 --out profiles.json",
        "coppice profile build ./model --stats law=law.safetensors --criterion frequency --out law.json",
      ),
    )
    .action(async (path, options) => {
      const out = context.path(options.out);
      checkFileAbsent(out);
      const { data = [], stats = [], general, seed, criterion: name } = options;
      checkNames([...data, ...stats].map((given) => given.name));
      const criterion = { name, criterion: await openCriterion(name, options.set, context) };
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      const tasks = await collectTasks(opened, { ...options, data, stats }, criterion, context);
      let store = createStore(model, options.statistic);
      const add = async (task: TaskData, isGeneral: boolean) => {
        const scores = await scoreBy(criterion, opened, { seed, statistics: task.statistics }, context);
        store = addProfile(store, { ...task, model, scores, criterion: name, general: isGeneral });
      };
      for (const task of tasks) await add(task, false);
      if (general !== undefined) await add({ name: general, statistics: together(tasks) }, true);
      await writeProfiles(out, store, { signal: context.signal });
      context.out.result({ out, ...profileTable(store).data }, () =>
        [profileTable(store).text, `wrote ${out}`].join("\n\n"),
      );
    });
}

interface CollectOptions extends PoolOptions {
  readonly data: readonly NamedFile[];
  readonly stats: readonly NamedFile[];
  readonly limit?: number;
}

async function collectTasks(
  opened: OpenModel,
  options: CollectOptions,
  { name, criterion: { needs } }: NamedCriterion,
  context: CliContext,
): Promise<TaskData[]> {
  const tasks: TaskData[] = [];
  for (const { name: task, file } of options.stats) {
    const statistics = await readStatistics(context.path(file), { signal: context.signal });
    checkCollected(statistics, needs, name);
    tasks.push({ name: task, statistics });
  }
  if (options.data.length === 0) return tasks;
  await using pool = await openPool(opened, options, context);
  const backend = await backendHere(options, context);
  await using reader = await openPromptReader(backend, { ...opened.checkpoint, signal: context.signal });
  for (const given of options.data) {
    tasks.push(await collectTask(given, opened, pool, reader, needs, options.limit, context));
  }
  return tasks;
}

async function collectTask(
  { name, file }: NamedFile,
  opened: OpenModel,
  pool: ModelPool,
  reader: PromptReader,
  needs: NamedCriterion["criterion"]["needs"],
  limit: number | undefined,
  context: CliContext,
): Promise<TaskData> {
  const task = await readTask(file, context);
  const { model, folder } = opened.checkpoint;
  const { signal } = context;
  const cut = limit === undefined ? {} : { limit };
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  const wanted = wantedStatistics(model, [needs]);
  const statistics = await pool.collectStatistics({ task, emitter, signal, ...wanted, ...cut });
  context.out.settle();
  const tokenizer = await loadTokenizer(folder);
  const prompts = calibrationSequences(task, { tokenizer, model, promptsOnly: true, ...cut });
  return { name, statistics, prompts: await reader.sums(prompts, signal) };
}

/** The statistics of all tasks, each weighing the same. */
function together(tasks: readonly TaskData[]): CollectedStatistics {
  const mean = tasks.reduce((sum, { statistics }) => sum + statistics.tokens, 0) / tasks.length;
  return tasks
    .map(({ statistics }) => scaleStatistics(statistics, mean / statistics.tokens))
    .reduce(mergeStatistics);
}

function checkNames(names: readonly string[]): void {
  if (names.length === 0)
    throw new CoppiceError("COPPICE_USAGE", "give at least one task, by --data or --stats");
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice === undefined) return;
  throw new CoppiceError("COPPICE_USAGE", `the task "${twice}" is given twice`, {
    hint: "put its data into one file, or add up its statistics with `coppice stats merge`",
  });
}

function namedFiles(text: string, previous: readonly NamedFile[] = []): NamedFile[] {
  const at = text.indexOf("=");
  if (at < 1 || at === text.length - 1)
    throw new InvalidArgumentError("expected name=file, such as math=math.jsonl.");
  return [...previous, { name: text.slice(0, at), file: text.slice(at + 1) }];
}

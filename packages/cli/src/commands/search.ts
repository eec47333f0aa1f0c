import { Command, type CommandUnknownOpts, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { CoppiceError, type MoeModel, moeLayers, RunEmitter } from "@coppice/core";
import { type Objective, objectives } from "@coppice/evaluate";
import { openRunFolder } from "@coppice/search/node";
import type { CliContext } from "../context.js";
import {
  attentionPlanOption,
  backendOption,
  backendSetOption,
  byteCount,
  examples,
  executorOption,
  executorSetOption,
  list,
  seedOption,
  settings,
  wholeNumber,
  workersOption,
} from "../options.js";
import { findPlugin, loadPlugin } from "../plugins/find-plugin.js";
import { checkStrategy } from "../search-job/create-strategy.js";
import { fitGrids } from "../search-job/fit-grids.js";
import { runAndReport } from "../search-job/run-and-report.js";
import { askBatch, runIdentity, type SearchJob } from "../search-job/search-job.js";
import { crossFittedLine, memoryLine, showTables } from "../search-job/search-result.js";
import { finiteNumber, named, readJobTasks } from "../search-job/task-options.js";
import { shellLine } from "../terminal/format.js";
import { shownPlan } from "../terminal/shown-plan.js";
import { attentionHash, chooseAttentionPlan } from "../work/attention-plan-file.js";
import { backendHere } from "../work/backend-here.js";
import { checkKeepFits } from "../work/check-keep-fits.js";
import { fitMemory } from "../work/fit-memory.js";
import { numericsOf } from "../work/numerics.js";
import { openModel } from "../work/open-model.js";
import { openWorkPool, withoutPassword } from "../work/work-pool.js";

/** Criteria that cost one pass of calibration together. */
const defaultSeeds = ["frequency", "soft-activation", "reap"];
const defaultBudget = 400;

export function searchCommand(context: CliContext): CommandUnknownOpts {
  return new Command("search")
    .description(
      "Searches which experts to keep, and how to merge the others into them, by the score on your task. " +
        "Interrupt it at any time: the same command continues where it stopped.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option(
        "--task <file>",
        "task file (JSON lines) whose score is to be kept; repeatable, also as name=file",
      )
        .argParser(named(String))
        .makeOptionMandatory(),
    )
    .addOption(
      new Option("--keep <n>", "experts that every layer keeps; or give --memory").argParser(wholeNumber(1)),
    )
    .addOption(
      new Option(
        "--memory <size>",
        "instead: as many experts per layer as the weights of the new checkpoint have room for, such as 40MB, and a smaller top-k where nothing fits otherwise",
      ).argParser(byteCount),
    )
    .requiredOption("--out <folder>", "run folder: journal, plan.json, report.html, result.json")
    .addOption(
      new Option("--top-k <n>", "experts per token; default: the model's own").argParser(wholeNumber(1)),
    )
    .addOption(
      new Option(
        "--limit <n>",
        "search on the first n samples of every task; up to n further ones choose among the best plans",
      ).argParser(wholeNumber(1)),
    )
    .addOption(
      new Option(
        "--holdout <file>",
        "task file that no decision looks at; default: 30 % of the task is set aside; of several tasks name=file",
      ).argParser(named(String)),
    )
    .addOption(
      new Option(
        "--weight <name=number>",
        "how much a task counts among several, whatever its number of samples; default 1; repeatable",
      ).argParser(named(finiteNumber("a number above 0", (value) => value > 0))),
    )
    .addOption(
      new Option(
        "--minimum <name=number>",
        "mean of a task's objective that plans have to reach, among several tasks; repeatable",
      ).argParser(named(finiteNumber("a number", () => true))),
    )
    .addOption(
      new Option("--budget <n>", "plans to evaluate at most")
        .argParser(wholeNumber(1))
        .default(defaultBudget),
    )
    .addOption(
      new Option(
        "--seconds <n>",
        "time to search at most, earlier runs in the folder included; calibration and the final scores come on top",
      ).argParser(wholeNumber(1)),
    )
    .addOption(
      new Option("--patience <n>", "end the search when so many plans brought no better one").argParser(
        wholeNumber(1),
      ),
    )
    .addOption(
      new Option(
        "--batch <n>",
        "plans proposed at a time; more keep more machines busy, and change the course",
      )
        .argParser(wholeNumber(1))
        .default(askBatch),
    )
    .addOption(new Option("--strategy <name>", "search plugin").default("eep"))
    .option("--preset <name>", "preset of the strategy; eep has default, paper, released")
    .addOption(new Option("--set <key=value>", "option of the strategy; repeatable").argParser(settings))
    .addOption(
      new Option("--seeds <names>", "criteria whose plans start the search, or none")
        .argParser(list)
        .default(defaultSeeds, defaultSeeds.join(",")),
    )
    .addOption(
      new Option(
        "--objective <name>",
        `what the search maximises: ${objectives.join(", ")}; default: by the task's form; also task=name`,
      ).argParser(named(objectiveName)),
    )
    .addOption(
      new Option(
        "--metric <name>",
        "metric of the table; default: by the task's form; also task=name",
      ).argParser(named(String)),
    )
    .option(
      "--reconstruct",
      "fit the down projections of the experts that are kept; default: where that takes less than some hours",
    )
    .option("--no-reconstruct", "leave the weights of the experts that are kept as they are")
    .option("--chat", "put prompts into the checkpoint's chat template")
    .addOption(seedOption)
    .option("--fresh", "refuse to continue an earlier run")
    .option("--cache <folder>", "keep scores of plans here, and take those that other runs have found")
    .addOption(attentionPlanOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addOption(executorOption)
    .addOption(executorSetOption)
    .addHelpText(
      "after",
      examples(
        "coppice search ./model --keep 4 --task task.jsonl --out run",
        "coppice search ./model --keep 4 --task task.jsonl --holdout dev.jsonl --limit 200 --budget 700 --seed 2 --out run",
        "coppice search ./model --keep 8 --top-k 1 --task task.jsonl --set router=stock --out run",
        "coppice search ./model --memory 6GB --top-k 4 --task task.jsonl --budget 2000 --seconds 7200 --patience 400 --out run",
        "coppice search ./model --keep 4 --task sums.jsonl --task facts.jsonl --weight sums=2 --minimum facts=0.8 --out run",
      ),
    )
    .action(async (path, options) => {
      const { cwd } = context.io;
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      const memory =
        options.memory === undefined
          ? undefined
          : await fitMemory(opened, { limit: options.memory, topK: options.topK, signal: context.signal });
      const topK = options.topK ?? memory?.topK;
      const keep = options.keep ?? memory?.keep;
      if (keep === undefined || (options.keep !== undefined && memory)) {
        throw new CoppiceError("COPPICE_USAGE", "give either --keep or --memory");
      }
      checkKeepFits(model, keep, topK);
      if (memory) context.out.note(`Keeping ${memoryLine(memory)}.`);
      const reconstruct = options.reconstruct ?? fitGrids(model, keep).length > 0;
      if (!reconstruct && options.reconstruct === undefined) context.out.note(tooLarge);
      const attention = await chooseAttentionPlan(opened, options.attention, context);
      const seeds = options.seeds.filter((name) => name !== "none");
      const job: SearchJob = {
        opened,
        tasks: await readJobTasks(options, context),
        strategy: await loadPlugin("search", options.strategy, cwd),
        options: {
          keep,
          ...(topK !== undefined && { topK }),
          ...(options.preset !== undefined && { preset: options.preset }),
          ...(merges(model, keep, { ...options, reconstruct }) ? {} : { mergeEvaluations: 0 }),
          ...options.set,
        },
        keep,
        topK,
        ...(memory && { memory }),
        reconstruct,
        criteria: await Promise.all(seeds.map((name) => loadPlugin("criterion", name, cwd))),
        evaluations: options.budget,
        ...(options.seconds !== undefined && { seconds: options.seconds }),
        ...(options.patience !== undefined && { patience: options.patience }),
        batch: options.batch,
        seed: options.seed,
        chat: options.chat ?? false,
        ...(attention && { attention }),
        backend: findPlugin("backend", options.backend, cwd),
        backendOptions: options.backendSet ?? {},
      };
      await checkStrategy(job);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      await using folder = await openRunFolder(context.path(options.out), runIdentity(job), {
        fresh: options.fresh ?? false,
      });
      if (attention)
        context.out.note(`Every plan runs under the attention plan ${attentionHash(attention)}.`);
      if (folder.resumed) context.out.note(`Continuing the run in ${folder.path}.`);
      await using pool = await openWorkPool(opened, options, context, emitter, attention);
      const cache = options.cache && {
        folder: context.path(options.cache),
        numerics: await numericsOf(pool, model),
      };
      const { result, data, report, planFile } = await runAndReport(
        {
          job,
          pool,
          here: () => backendHere(options, context),
          folder,
          emitter,
          signal: context.signal,
          ...(cache && { cache }),
        },
        `coppice ${shellLine(context.argv.map(withoutPassword))}`,
      );
      context.out.settle();
      const { plan, ...found } = data;
      const { crossFitted } = result.reconstructed ?? {};
      context.out.result({ ...found, ...shownPlan(plan), run: folder.path, planFile, report }, () =>
        [
          showTables(result.tables),
          ...(crossFitted ? [`fit     ${crossFittedLine(crossFitted)}`] : []),
          ...(memory ? [`memory  ${memoryLine(memory)}`] : []),
          `plan    ${context.shown(planFile)}`,
          `report  ${context.shown(report)}`,
          `next    ${context.commandLine("apply", path, "--plan", `${options.out}/plan.json`, "--out", "./small")}`,
        ].join("\n"),
      );
    });
}

const tooLarge =
  "The experts are so large that fitting their projections would take many hours: they stay as they are. --reconstruct fits them all the same.";

/**
 * False where eep need not search for merges: fitting the projections takes their place and keeps far more. Where nothing is
 * pruned or router maps are asked for, there is nothing else to search.
 */
function merges(
  model: MoeModel,
  keep: number,
  options: {
    readonly reconstruct: boolean;
    readonly strategy: string;
    readonly preset?: string | undefined;
    readonly set?: Readonly<Record<string, unknown>> | undefined;
  },
): boolean {
  const { reconstruct, strategy, preset, set = {} } = options;
  const prunes = moeLayers(model).some(({ feedForward }) => feedForward.experts.length > keep);
  return !reconstruct || strategy !== "eep" || preset !== undefined || !prunes || "router" in set;
}

function objectiveName(text: string): Objective {
  const found = objectives.find((objective) => objective === text);
  if (!found) throw new InvalidArgumentError(`Allowed choices are ${objectives.join(", ")}.`);
  return found;
}

import { existsSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { isDeepStrictEqual } from "node:util";
import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { readProvenance } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { CoppiceError, modelSize, type Plan, parsePlan, RunEmitter, recordPlan } from "@coppice/core";
import { modelPath, type TaskName, taskNames, taskPath } from "@coppice/demo-model";
import { defaultMetric, defaultObjective } from "@coppice/evaluate";
import { formatBytes, formatCount } from "@coppice/report";
import { openRunFolder } from "@coppice/search/node";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  examples,
  numberIn,
  seedOption,
  wholeNumber,
  workersOption,
} from "../options.js";
import { findPlugin, loadPlugin } from "../plugins/find-plugin.js";
import { runAndReport } from "../search-job/run-and-report.js";
import { sampleSets } from "../search-job/sample-sets.js";
import { type ResultRow, runIdentity, type SearchJob } from "../search-job/search-job.js";
import { taskResult } from "../search-job/search-result.js";
import type { TaskTable } from "../search-job/task-table.js";
import { formatDuration, formatInterval, formatTable, shellLine } from "../terminal/format.js";
import { shownPlan } from "../terminal/shown-plan.js";
import { backendHere } from "../work/backend-here.js";
import { openPool } from "../work/model-pool.js";
import { type OpenModel, openModel } from "../work/open-model.js";
import { readTask } from "../work/task-file.js";
import { verifyModels } from "../work/verify-models.js";
import { writeCheckpoint } from "../work/write-checkpoint.js";

/** Evaluations of 200 samples of `arith` that two slow cores manage in a minute. */
const evaluationsPerMinute = 160;
/** A shorter search is to try the way: fitting projections would take many times as long. */
const leastFitMinutes = 0.5;
/** Minutes of searching; calibration, baselines, writing and proving take about one more. */
const defaultMinutes = 2.5;
const searchSamples = 200;
const criteria = ["frequency", "reap"];

export function demoCommand(context: CliContext): CommandUnknownOpts {
  return new Command("demo")
    .description(
      "Runs the whole job on the shipped model: calibrates, compares random, frequency and REAP pruning with an EEP " +
        "search, writes the smaller checkpoint and proves it equal to what was evaluated. Needs no network.",
    )
    .addOption(new Option("--task <name>", "task to keep").choices(taskNames).default("arith" as TaskName))
    .addOption(
      new Option("--keep <n>", "experts that each of the 6 layers keeps of 8")
        .argParser(wholeNumber(1))
        .default(4),
    )
    .addOption(
      new Option(
        "--budget-minutes <m>",
        "about how long to search on two cores; below 0.5 projections are not fitted",
      )
        .argParser(numberIn(0.05, 1440))
        .default(defaultMinutes),
    )
    .option("--out <folder>", "where everything goes", "./coppice-demo")
    .addOption(seedOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText("after", examples("coppice demo", "coppice demo --task extract --out extract-demo"))
    .action(async (options) => {
      const started = performance.now();
      const { cwd } = context.io;
      const { keep, seed, task } = options;
      const out = context.path(options.out);
      await using opened = await openModel(modelPath, context);
      const search = await readTask(taskPath(task, "search"), context);
      const holdout = await readTask(taskPath(task, "dev"), context);
      const job: SearchJob = {
        opened: { ...opened, name: "coppice-mixtral-27m" },
        tasks: [
          {
            name: search.name,
            sets: sampleSets({ task: search, holdout, limit: searchSamples, seed }),
            objective: defaultObjective(search.form),
            metric: defaultMetric(search.form),
            weight: 1,
          },
        ],
        strategy: await loadPlugin("search", "eep", cwd),
        // Fitting the projections takes the place of a search for merges, and keeps far more.
        options: { keep, mergeEvaluations: 0 },
        reconstruct: options.budgetMinutes >= leastFitMinutes,
        keep,
        topK: undefined,
        criteria: await Promise.all(criteria.map((name) => loadPlugin("criterion", name, cwd))),
        evaluations: Math.max(1, Math.round(options.budgetMinutes * evaluationsPerMinute)),
        seed,
        chat: false,
        backend: findPlugin("backend", options.backend, cwd),
        backendOptions: options.backendSet ?? {},
      };
      context.out.begin(
        `Keeping ${keep} of 8 experts per layer of coppice-mixtral-27m for the task ${task}, in ${out}`,
      );
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      await using folder = await openRunFolder(join(out, "run"), runIdentity(job));
      if (folder.resumed) context.out.note("Continuing the run that is there.");
      const { result, data, report, planFile } = await searchWithPool(job);
      context.out.settle();

      const { plan } = result;
      const [table] = result.tables as [TaskTable];
      const scores = taskResult(table);
      const written = join(out, "model");
      await writeOnce(job.opened, plan, written, {
        command: "demo",
        task,
        holdout: { metric: scores.metric, ...scores.holdout },
      });
      await using small = await openModel(written, context);
      const proof = await verifyModels(
        { original: opened, other: small, plan, task: holdout, seed, tolerance: 1e-4 },
        options,
        context,
      );
      context.out.settle();
      if (!proof.equal) context.exitCode = 1;
      const seconds = (performance.now() - started) / 1000;
      const { plan: _, ...found } = data;
      context.out.result(
        {
          ...found,
          ...shownPlan(plan),
          task,
          verify: proof,
          out,
          checkpoint: written,
          planFile,
          report,
          seconds,
        },
        () =>
          [
            "",
            demoTable(
              task,
              table.rows,
              modelSize(opened.checkpoint.model),
              modelSize(opened.checkpoint.model, plan),
            ),
            "",
            proof.equal
              ? `The checkpoint equals what was evaluated: largest difference of logits ${proof.maxAbsDiff.toExponential(1)}.`
              : `The checkpoint DIFFERS from what was evaluated, by up to ${proof.maxAbsDiff.toExponential(1)}.`,
            `Done in ${formatDuration(1000 * seconds)}.`,
            "",
            `report      ${pathToFileURL(report).href}`,
            `checkpoint  ${context.shown(written)}`,
            `plan        ${context.shown(planFile)}`,
            `try it      ${context.commandLine("generate", context.shown(written), "--prompt", search.form === "generation" ? (holdout.samples[0] as { prompt: string }).prompt : "", "--max-tokens", "12")}`,
            `            ${context.commandLine("inspect", context.shown(written))}`,
          ].join("\n"),
      );

      async function searchWithPool(job: SearchJob) {
        await using pool = await openPool(job.opened, options, context);
        // Without await the pool would be gone before the run has begun.
        return await runAndReport(
          { job, pool, here: () => backendHere(options, context), folder, emitter, signal: context.signal },
          `coppice ${shellLine(context.argv)}`,
        );
      }
    });

  /** A finished demo leaves its checkpoint; a second run of the same demo finds the same plan in it. */
  async function writeOnce(
    opened: OpenModel,
    plan: Plan,
    out: string,
    metadata: Record<string, unknown>,
  ): Promise<void> {
    const { model } = opened.checkpoint;
    if (existsSync(out)) {
      const folder = await openFolder(out);
      const provenance = await readProvenance(folder).finally(() => folder.close());
      const [found, expected] = [provenance?.plan, parsePlan(plan, model)].map((one) =>
        recordPlan(one, model),
      );
      if (isDeepStrictEqual(found, expected)) return;
      throw new CoppiceError("COPPICE_IO_EXISTS", `${out} holds another checkpoint`, {
        hint: "give another folder with --out, or remove this one",
      });
    }
    await writeCheckpoint({ opened, plan, out, dryRun: false, maxShardBytes: undefined, metadata }, context);
  }
}

interface Size {
  readonly bytes: number;
  readonly activeParameters: number;
}

function demoTable(task: string, rows: readonly ResultRow[], before: Size, after: Size): string {
  return formatTable(
    [task, "search score", "holdout score", "weights", "active"],
    rows.map(({ label, note, role, search, holdout }) => {
      const size = role === "full" ? before : after;
      return [
        note === undefined ? label : `${label} (${note})`,
        formatInterval(search),
        formatInterval(holdout),
        formatBytes(size.bytes),
        formatCount(size.activeParameters),
      ];
    }),
    [3, 4],
  );
}

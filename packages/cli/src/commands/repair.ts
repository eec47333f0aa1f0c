import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { CoppiceError, type Plan, RunEmitter } from "@coppice/core";
import type { Task } from "@coppice/evaluate";
import { formatScore, formatShare } from "@coppice/report";
import {
  type AcceptedLayers,
  acceptLayers,
  type LayerRepair,
  type RepairedRouter,
  repairNeeds,
  repairRouter,
} from "@coppice/router-repair";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  dataLimitOption,
  dataOption,
  examples,
  numberIn,
  statsOption,
  wholeNumber,
  workersOption,
} from "../options.js";
import { formatFacts, formatTable } from "../terminal/format.js";
import { findStatistics } from "../work/criterion-scores.js";
import { openPool, type PoolOptions } from "../work/model-pool.js";
import { type OpenModel, openModel } from "../work/open-model.js";
import { readPlan, writePlan } from "../work/plan-file.js";
import { readTask } from "../work/task-file.js";
import { checkFileAbsent } from "../work/write-checkpoint.js";

export function repairCommand(context: CliContext): CommandUnknownOpts {
  return new Command("repair")
    .description(
      "Fits the router rows of a plan so that every layer puts out what the whole layer did, from a sample of tokens, without " +
        "gradients and without running the model. A quarter of the tokens is held out and decides what is accepted. Writes the " +
        "plan with its new rows; score both plans by `coppice eval` before you keep it.",
    )
    .argument("<model>", "checkpoint folder that the plan was made for")
    .requiredOption("--plan <file>", "plan to repair: pruned, merged, or with another top-k")
    .requiredOption("--out <file>", "plan file to write")
    .addOption(statsOption)
    .addOption(dataOption)
    .addOption(dataLimitOption)
    .addOption(
      new Option(
        "--caution <share>",
        "share of the fit's gain on held-out tokens that is given up for rows that change less; default 0.6",
      ).argParser(numberIn(0, 1)),
    )
    .addOption(
      new Option("--rounds <n>", "most rounds of fits per layer; default 1").argParser(wholeNumber(1)),
    )
    .addOption(
      new Option(
        "--check <file>",
        "task file: keep the new rows of a layer only if predictions on it come nearer to the whole model's (recommended)",
      ),
    )
    .addOption(
      new Option("--check-limit <n>", "only the first n samples of --check").argParser(wholeNumber(1)),
    )
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice calibrate ./model --data task.jsonl --sample logits,inputs,grams --out stats.safetensors",
        "coppice repair ./model --plan plan.json --stats stats.safetensors --check task.jsonl --out repaired.json",
        "coppice apply ./model --plan repaired.json --out ./small",
      ),
    )
    .action(async (path, options) => {
      const out = context.path(options.out);
      checkFileAbsent(out);
      if (options.checkLimit !== undefined && options.check === undefined) {
        throw new CoppiceError("COPPICE_USAGE", "--check-limit needs --check");
      }
      await using opened = await openModel(path, context);
      const { model, weights } = opened.checkpoint;
      const plan = await readPlan(options.plan, model, context);
      const task = options.check === undefined ? undefined : await readTask(options.check, context);
      const needs = { statistics: true, weights: true, ...repairNeeds };
      const statistics = await findStatistics(opened, [{ name: "router repair", needs }], options, context);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      const repaired = await repairRouter({
        model,
        weights,
        plan,
        statistics,
        emitter,
        signal: context.signal,
        ...(options.caution !== undefined && { caution: options.caution }),
        ...(options.rounds !== undefined && { rounds: options.rounds }),
      });
      context.out.settle();
      const check = await checkLayers({ opened, plan, repaired, emitter, task }, options, context);
      const written = check?.plan ?? repaired.plan;
      await writePlan(out, written);
      if (repaired.layers.some(({ exact }) => !exact)) {
        context.out.note(
          "Errors of layers with merged experts are estimates: a merged expert is taken to put out the mean of its members.",
        );
      }
      if (written.layers.some(({ skip, router }) => skip && router)) {
        context.out.warn(
          "the new rows change how often the rules of the plan skip experts: fit the rules again by `coppice allocate skip --plan`",
        );
      }
      const { layers } = repaired;
      const facts = check
        ? { check: { before: check.before, after: check.after, layers: check.layers } }
        : {};
      context.out.result({ out, layers, ...facts, plan: written }, () =>
        [
          describeLayers(layers, check),
          "",
          formatFacts([
            ...(check
              ? ([
                  ["KL", `${formatScore(check.before)} -> ${formatScore(check.after)}, to the whole model`],
                ] as const)
              : []),
            ["wrote", out],
          ]),
        ].join("\n"),
      );
    });
}

interface CheckOptions extends PoolOptions {
  readonly checkLimit?: number;
}

/** Keeps the new rows of the layers that bring predictions nearer to the whole model's; undefined without --check. */
async function checkLayers(
  request: {
    readonly opened: OpenModel;
    readonly plan: Plan;
    readonly repaired: RepairedRouter;
    readonly emitter: RunEmitter;
    readonly task: Task | undefined;
  },
  options: CheckOptions,
  context: CliContext,
): Promise<AcceptedLayers | undefined> {
  const { opened, emitter, task, ...repair } = request;
  if (!task) return undefined;
  const { signal } = context;
  const limit = options.checkLimit;
  await using pool = await openPool(opened, options, context);
  const found = await acceptLayers({
    ...repair,
    emitter,
    signal,
    measure: async (plan) => {
      const score = await pool.evaluateTask({
        task,
        plan,
        metric: "kl",
        signal,
        ...(limit !== undefined && { limit }),
      });
      return score.value;
    },
  });
  context.out.settle();
  return found;
}

function describeLayers(layers: readonly LayerRepair[], check: AcceptedLayers | undefined): string {
  return formatTable(
    [
      "layer",
      "error before",
      "after",
      "held out before",
      "after",
      "left",
      "steps",
      ...(check ? ["KL", "kept"] : []),
    ],
    layers.map(({ layer, before, after, steps }) => [
      String(layer),
      formatScore(before.fit),
      formatScore(after.fit),
      formatScore(before.heldOut),
      formatScore(after.heldOut),
      before.heldOut > 0 ? formatShare(after.heldOut, before.heldOut) : "",
      steps.map(({ kind }) => kind).join(", ") || "none helped",
      ...(check ? describeCheck(check, layer) : []),
    ]),
    [0, 1, 2, 3, 4, 5],
  );
}

function describeCheck({ layers }: AcceptedLayers, layer: number): string[] {
  const found = layers.find((other) => other.layer === layer);
  return found ? [formatScore(found.value), found.accepted ? "yes" : "no"] : ["", ""];
}

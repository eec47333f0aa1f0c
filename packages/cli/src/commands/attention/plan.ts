import { Command, type CommandUnknownOpts, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import {
  type AttentionMethod,
  type AttentionPlanRequest,
  CoppiceError,
  parseAttentionPlan,
  Rng,
  RunEmitter,
  type Runner,
  spanDensity,
} from "@coppice/core";
import { writeFileAtomic } from "@coppice/core/node";
import { formatBytes } from "@coppice/report";
import type { CliContext } from "../../context.js";
import {
  backendOption,
  backendSetOption,
  examples,
  list,
  numberIn,
  seedOption,
  settings,
  wholeNumber,
} from "../../options.js";
import { loadPlugin } from "../../plugins/find-plugin.js";
import { attentionPicture, attentionSummary } from "../../terminal/attention-plan.js";
import { formatDuration } from "../../terminal/format.js";
import { attentionTexts } from "../../work/attention-texts.js";
import { backendHere } from "../../work/backend-here.js";
import { type OpenModel, openModel } from "../../work/open-model.js";
import { readTextFile } from "../../work/text-file.js";
import { checkFileAbsent } from "../../work/write-checkpoint.js";

export function planCommand(context: CliContext): CommandUnknownOpts {
  return new Command("plan")
    .summary("decide how far back every head looks")
    .description(
      "Makes an attention plan: a span for every head, so that all of them together see a share of the context. " +
        "`coppice eval --attention` and `coppice generate --attention` run under it.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option("--method <name>", "attention plugin: sink-window, moa-span, duo-heads").default("moa-span"),
    )
    .addOption(new Option("--set <key=value>", "option of the method; repeatable").argParser(settings))
    .option("--pattern <file>", "duo-heads: published head pattern, full_attention_heads.tsv")
    .addOption(
      new Option("--density <share>", "most that heads see of a context, on average")
        .argParser(numberIn(0, 1))
        .default(0.5),
    )
    .addOption(
      new Option(
        "--lengths <list>",
        "context lengths that the plan is made for; default: up to the model's",
      ).argParser(lengths),
    )
    .addOption(
      new Option("--data <files>", "task files or texts to profile on, separated by commas").argParser(list),
    )
    .addOption(
      new Option("--samples <n>", "contexts of each length from each file")
        .argParser(wholeNumber(1))
        .default(2),
    )
    .addOption(
      new Option(
        "--validation-lengths <list>",
        "lengths at which plans are compared; default: three quarters of the shortest and of the longest",
      ).argParser(lengths),
    )
    .addOption(new Option("--limit <n>", "only the first n samples of each file").argParser(wholeNumber(1)))
    .option("--chat", "put prompts into the checkpoint's chat template")
    .option("--solver <name>", "moa-span: plugin that chooses, such as highs; default: the method's own")
    .addOption(new Option("--solver-set <key=value>", "option of the solver; repeatable").argParser(settings))
    .addOption(seedOption)
    .addOption(new Option("--out <file>", "plan file to write").makeOptionMandatory())
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addHelpText(
      "after",
      examples(
        "coppice attention plan ./model --density 0.5 --lengths 1024,2048,4096 --data task.jsonl --out attention.json",
        "coppice attention plan ./model --method sink-window --density 0.25 --out window.json",
        "coppice attention plan ./model --method duo-heads --pattern full_attention_heads.tsv --out duo.json",
        "coppice eval ./model --attention attention.json --task dev.jsonl",
      ),
    )
    .action(async (path, options) => {
      const started = performance.now();
      const { density } = options;
      const out = context.path(options.out);
      checkFileAbsent(out);
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      const { plugin } = await loadPlugin("attention", options.method, context.io.cwd);
      const pattern = options.pattern === undefined ? {} : await readPattern(options.pattern, context);
      const method = await plugin.create({ ...options.set, ...pattern }, undefined);
      if (!method.plan) {
        throw new CoppiceError("COPPICE_USAGE", `${options.method} makes masks while a text runs, no plans`, {
          hint: "name it with --attention of eval or generate",
        });
      }
      const solver = await solverFor(options, context);
      const wanted = options.lengths ?? defaultLengths(model.contextLength);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      const request = {
        model,
        lengths: wanted,
        density,
        rng: Rng.fromSeed(options.seed),
        emitter,
        signal: context.signal,
        ...solver,
        ...(await textsFor(method, opened, { ...options, lengths: wanted }, context)),
      };
      const plan = await planWith(method, request, opened, options, context);
      context.out.settle();
      // What a plugin returns is checked like any file.
      const checked = parseAttentionPlan(plan, model);
      await writeFileAtomic(out, `${JSON.stringify(checked)}\n`);
      const densities = wanted.map((length) => ({ length, density: spanDensity(checked, length) }));
      const ms = performance.now() - started;
      context.out.result({ out, densities, milliseconds: Math.round(ms), plan: checked }, () =>
        [
          attentionPicture(checked, wanted.at(-1) as number),
          attentionSummary(checked, wanted),
          `Wrote ${context.shown(out)} after ${formatDuration(ms)}.`,
        ].join("\n\n"),
      );
    });
}

/** A number per head: a megabyte is far more than any model needs. */
const patternBytes = 1_000_000;

async function readPattern(path: string, context: CliContext): Promise<{ readonly pattern: string }> {
  const code = "COPPICE_ATTENTION_INVALID";
  return { pattern: await readTextFile(context.path(path), patternBytes, code, context.signal) };
}

async function solverFor(
  {
    solver,
    solverSet = {},
  }: { readonly solver?: string; readonly solverSet?: Readonly<Record<string, unknown>> },
  context: CliContext,
): Promise<Pick<AttentionPlanRequest, "solver">> {
  if (solver === undefined) return {};
  const { plugin } = await loadPlugin("solver", solver, context.io.cwd);
  return { solver: await plugin.create(solverSet, undefined) };
}

interface PlanOptions {
  readonly method: string;
  readonly data?: readonly string[];
  readonly lengths: readonly number[];
  readonly samples: number;
  readonly validationLengths?: readonly number[];
  readonly limit?: number;
  readonly chat?: true;
  readonly seed: number;
}

async function textsFor(
  { needs }: AttentionMethod,
  opened: OpenModel,
  options: PlanOptions,
  context: CliContext,
) {
  if (!needs.samples) return {};
  const { data = [], method } = options;
  if (data.length === 0) {
    throw new CoppiceError("COPPICE_USAGE", `${method} needs --data: it measures what heads look at`, {
      hint: "give a task file or text that is like what the model will read",
    });
  }
  return attentionTexts(opened, { ...options, data }, context);
}

async function planWith(
  method: AttentionMethod,
  request: AttentionPlanRequest,
  { checkpoint }: OpenModel,
  running: Parameters<typeof backendHere>[0],
  context: CliContext,
) {
  const { model, weights } = checkpoint;
  const estimate = method.estimate?.(request);
  const plan = (more: Partial<AttentionPlanRequest>) =>
    (method.plan as NonNullable<AttentionMethod["plan"]>)({ ...request, ...more });
  const given = method.needs.weights ? { weights } : {};
  if (!method.needs.runner) return plan(given);
  const backend = await backendHere(running, context);
  await using runner = await backend.load({ model, weights, signal: context.signal });
  if (estimate) {
    const rate = await tokenLayersPerMs(runner, request);
    const ms = estimate.tokenLayers / rate + estimate.multiplications / multiplicationsPerMs();
    context.out.note(
      `The profile takes up to ${formatBytes(estimate.bytes)} besides the ${formatBytes(process.memoryUsage.rss())} that the ` +
        `loaded model has, and about ${formatDuration(ms)}.`,
    );
  }
  return await plan({ ...given, runner });
}

/** How fast the runner is here and now, by the beginning of a text. */
async function tokenLayersPerMs(runner: Runner, { samples = [] }: AttentionPlanRequest): Promise<number> {
  const longest = samples.reduce((a, b) => (b.tokens.length > a.tokens.length ? b : a));
  const run = async (tokens: Int32Array): Promise<number> => {
    const start = performance.now();
    const { tokenLayers } = await runner.run({ sequences: [tokens], to: 1, boundaries: [1] });
    return tokenLayers / (performance.now() - start);
  };
  // What the runner needs for the longest text it takes now, so that it counts as its own.
  await run(longest.tokens);
  let best = 0;
  for (let i = 0; i < triedTimes; i++) best = Math.max(best, await run(longest.tokens.slice(0, 1024)));
  return best;
}

/** The fastest of several counts: what is slower, other programs slowed down. */
const triedTimes = 4;

/** Several sums at a time, as in products of matrices: one alone would wait for itself. */
function multiplicationsPerMs(): number {
  const values = new Float32Array(2 ** 22).fill(0.5);
  let best = 0;
  for (let round = 0; round < triedTimes; round++) {
    const start = performance.now();
    let [a, b, c, d] = [0, 0, 0, 0];
    for (let i = 0; i < values.length; i += 4) {
      a += (values[i] as number) ** 2;
      b += (values[i + 1] as number) ** 2;
      c += (values[i + 2] as number) ** 2;
      d += (values[i + 3] as number) ** 2;
    }
    best = Math.max(best, (values.length * Math.sign(a + b + c + d)) / (performance.now() - start));
  }
  return best;
}

/** A quarter of the model's context, half of it, and all. */
function defaultLengths(contextLength: number): number[] {
  return [...new Set([4, 2, 1].map((part) => Math.max(2, Math.floor(contextLength / part))))];
}

function lengths(text: string): number[] {
  return list(text).map((part) => {
    const value = Number(part);
    if (!Number.isSafeInteger(value) || value < 2) {
      throw new InvalidArgumentError("expected context lengths such as 1024,2048,4096.");
    }
    return value;
  });
}

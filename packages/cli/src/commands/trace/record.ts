import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import {
  CoppiceError,
  type Plan,
  RunEmitter,
  type Runner,
  startProgress,
  throwIfAborted,
} from "@coppice/core";
import { calibrationSequences, generate, loadTokenizer, type Task } from "@coppice/evaluate";
import { TraceRecorder, traceTokens } from "@coppice/profiles";
import { writeTrace } from "@coppice/profiles/node";
import type { CliContext } from "../../context.js";
import {
  backendOption,
  backendSetOption,
  dataKindOption,
  examples,
  newTokensOption,
  planOption,
  sampleLimitOption,
} from "../../options.js";
import { formatFacts } from "../../terminal/format.js";
import { backendHere } from "../../work/backend-here.js";
import { type OpenModel, openModel } from "../../work/open-model.js";
import { readPlan } from "../../work/plan-file.js";
import { readTask } from "../../work/task-file.js";
import { checkFileAbsent } from "../../work/write-checkpoint.js";

export function recordCommand(context: CliContext): CommandUnknownOpts {
  return new Command("record")
    .summary("write down which experts every token runs")
    .description(
      "Runs the model over your data and writes down which experts every token runs. Prompts count as read at once " +
        "(prefill), answers and what the model writes as read one by one (decoding).",
    )
    .argument("<model>", "checkpoint folder")
    .requiredOption("--data <file>", "task file (prompts with their answers) or text")
    .requiredOption("--out <file>", "trace to write, such as trace.safetensors")
    .addOption(sampleLimitOption)
    .addOption(dataKindOption)
    .addOption(newTokensOption)
    .option("--chat", "put prompts into the checkpoint's chat template")
    .addOption(planOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addHelpText(
      "after",
      examples(
        "coppice trace record ./model --data task.jsonl --limit 100 --out trace.safetensors",
        "coppice trace record ./model --data task.jsonl --kind generations --max-tokens 64 --out own.safetensors",
      ),
    )
    .action(async (path, options) => {
      const { kind, maxTokens, limit, chat = false } = options;
      const { signal } = context;
      if (maxTokens !== undefined && kind !== "generations") {
        throw new CoppiceError("COPPICE_USAGE", "--max-tokens is for --kind generations");
      }
      const out = context.path(options.out);
      checkFileAbsent(out);
      await using opened = await openModel(path, context);
      const { model, weights } = opened.checkpoint;
      const task = await readTask(options.data, context);
      if (task.form === "text" && kind !== "answers") {
        throw new CoppiceError("COPPICE_USAGE", `--kind ${kind} needs prompts; ${task.name} is text`);
      }
      const plan = options.plan === undefined ? undefined : await readPlan(options.plan, model, context);
      const backend = await backendHere(options, context);
      await using runner = await backend.load({ model, weights, signal });
      const recorder = new TraceRecorder(model, { name: task.name, ...(plan && { plan }) });
      const request: Request = { task, chat, ...(limit !== undefined && { limit }), ...(plan && { plan }) };
      if (kind === "generations") {
        await recordGenerations(recorder.watch(runner), opened, { ...request, maxTokens }, context);
      } else await recordData(recorder, runner, opened, request, kind, context);
      context.out.settle();
      const trace = recorder.finish();
      await writeTrace(out, trace, { signal });
      const { prefill, decode } = traceTokens(trace);
      context.out.result({ out, sequences: trace.sequences.length, prefill, decode }, () =>
        formatFacts([
          ["wrote", out],
          ["sequences", trace.sequences.length.toLocaleString("en")],
          ["tokens", `${prefill.toLocaleString("en")} of prompts, ${decode.toLocaleString("en")} decoded`],
        ]),
      );
    });
}

interface Request {
  readonly task: Task;
  readonly chat: boolean;
  readonly limit?: number;
  readonly plan?: Plan;
}

/** Tokens that run at once, which bounds memory. */
const batchTokens = 1_024;

async function recordData(
  recorder: TraceRecorder,
  runner: Runner,
  opened: OpenModel,
  { task, plan, ...encoding }: Request,
  kind: "prompts" | "answers",
  context: CliContext,
): Promise<void> {
  const { model, folder } = opened.checkpoint;
  const { signal } = context;
  const options = { ...encoding, model, tokenizer: await loadTokenizer(folder) };
  const sequences = calibrationSequences(task, { ...options, promptsOnly: kind === "prompts" });
  // Text has no prompts: all of it is read at once.
  const prompts =
    task.form === "text" ? sequences : calibrationSequences(task, { ...options, promptsOnly: true });
  const emitter = progress(context);
  for (let from = 0; from < sequences.length; ) {
    let to = from;
    for (let tokens = 0; to < sequences.length; to++) {
      tokens += sequences[to]?.length ?? 0;
      if (to > from && tokens > batchTokens) break;
    }
    throwIfAborted(signal, "recording a trace");
    const lengths = prompts.slice(from, to).map(({ length }) => length);
    await recorder.read(runner, sequences.slice(from, to), lengths, { signal, ...(plan && { plan }) });
    from = to;
    emitter(from, sequences.length);
  }
}

async function recordGenerations(
  runner: Runner,
  opened: OpenModel,
  { task, plan, maxTokens, ...encoding }: Request & { readonly maxTokens: number | undefined },
  context: CliContext,
): Promise<void> {
  const { model, folder } = opened.checkpoint;
  const tokenizer = await loadTokenizer(folder);
  const prompts = calibrationSequences(task, { ...encoding, model, tokenizer, promptsOnly: true });
  const emitter = progress(context);
  for (const [i, prompt] of prompts.entries()) {
    await generate(runner, tokenizer, prompt, {
      signal: context.signal,
      ...(maxTokens !== undefined && { maxTokens }),
      ...(plan && { plan }),
    });
    emitter(i + 1, prompts.length);
  }
}

/** Shows how many samples are done. */
function progress(context: CliContext): (done: number, total: number) => void {
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  return startProgress(emitter, "recording a trace", "samples");
}

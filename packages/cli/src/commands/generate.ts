import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { CoppiceError } from "@coppice/core";
import type { Generated, TextOptions } from "@coppice/evaluate";
import { isExportedFolder, openModelFolder } from "@coppice/runtime/node";
import type { CliContext } from "../context.js";
import {
  attentionOption,
  attentionSetOption,
  backendOption,
  backendSetOption,
  dtypeOption,
  examples,
  numberIn,
  planOption,
  seedOption,
  tokenIds,
  wholeNumber,
} from "../options.js";
import { askText, isInteractive } from "../terminal/ask.js";
import { printable } from "../terminal/printable.js";
import { type AttentionOptions, chooseAttention } from "../work/attention-source.js";
import { openPool, type PoolOptions } from "../work/model-pool.js";
import { openModel } from "../work/open-model.js";
import { readPlan } from "../work/plan-file.js";
import { checkSequence } from "./logits.js";

/** What only checkpoints have, and what only exported folders have. */
const checkpointOptions = [planOption, attentionOption, attentionSetOption, backendOption, backendSetOption];
const exportOptions = [dtypeOption];

export function generateCommand(context: CliContext): CommandUnknownOpts {
  return new Command("generate")
    .description(
      "Continues a text, greedily or by sampling, and prints it while it is written. The model is a checkpoint, or a folder " +
        "that `coppice export --format onnx` wrote.",
    )
    .argument("<model>", "checkpoint folder, or exported folder")
    .option("--prompt <text>", "text to continue")
    .addOption(
      new Option("--ids <ids>", "token ids to continue, 1,2,3").argParser((text: string) => tokenIds(text)),
    )
    .addOption(new Option("--max-tokens <n>", "most tokens to write").argParser(wholeNumber(1)).default(128))
    .addOption(
      new Option("--temperature <t>", "0 takes the most likely token").argParser(numberIn(0, 100)).default(0),
    )
    .addOption(
      new Option("--top-k <k>", "sample from this many most likely tokens").argParser(wholeNumber(1)),
    )
    .addOption(
      new Option("--top-p <p>", "sample from the most likely tokens of this total probability")
        .argParser(numberIn(0, 1))
        .default(1),
    )
    .addOption(
      new Option("--min-p <p>", "leave out tokens less likely than this share of the most likely one")
        .argParser(numberIn(0, 1))
        .default(0),
    )
    .addOption(
      new Option("--repetition-penalty <p>", "above 1, tokens that are there already become less likely")
        .argParser(numberIn(0, 100))
        .default(1),
    )
    .addOption(seedOption)
    .addOption(
      new Option("--stop <text>", "end before this text; repeatable").argParser(
        (text: string, previous: readonly string[] | undefined) => [...(previous ?? []), text],
      ),
    )
    .option("--chat", "put the prompt into the model's chat template")
    .addOption(planOption)
    .addOption(attentionOption)
    .addOption(attentionSetOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(dtypeOption)
    .addHelpText(
      "after",
      examples(
        'coppice generate ./model --prompt "Compute: 12 + 30 =" --max-tokens 8',
        'coppice generate ./model --prompt "Once" --temperature 0.8 --seed 3 --json',
        'coppice generate ./model-onnx --prompt "Once" --temperature 0.8 --min-p 0.05',
      ),
    )
    .action(async (path, options, command) => {
      const [ids] = options.ids ?? [];
      const given = options.prompt ?? ids;
      if (options.prompt !== undefined && ids !== undefined) {
        throw new CoppiceError("COPPICE_USAGE", "give either --prompt or --ids, not both");
      }
      if (given === undefined && !isInteractive(context)) {
        throw new CoppiceError("COPPICE_USAGE", "give a --prompt or --ids");
      }
      const isExport = await isExportedFolder(context.path(path));
      const foreign = (isExport ? checkpointOptions : exportOptions).find(
        (option) => command.getOptionValueSource(option.attributeName()) === "cli",
      );
      if (foreign) {
        const kind = isExport ? "an exported folder" : "a checkpoint";
        throw new CoppiceError("COPPICE_USAGE", `${foreign.long} is no option for ${path}, which is ${kind}`);
      }
      const input = given ?? (await askText("Which text shall the model continue?", context));
      const text: WantedText = {
        input,
        chat: options.chat ?? false,
        options: {
          maxTokens: options.maxTokens,
          temperature: options.temperature,
          topP: options.topP,
          minP: options.minP,
          repetitionPenalty: options.repetitionPenalty,
          seed: options.seed,
          signal: context.signal,
          ...(options.topK !== undefined && { topK: options.topK }),
          ...(options.stop && { stop: options.stop }),
        },
      };
      const { generated, seconds } = isExport
        ? await fromExport(path, text, options.dtype, context)
        : await fromCheckpoint(path, text, options, context);
      const { text: written, tokens, promptTokens, finish } = generated;
      const tokensPerSecond = tokens.length / Math.max(seconds, 1e-9);
      const result = { text: written, tokens, promptTokens, finish, tokensPerSecond, seconds };
      context.out.result(result, () => "");
      context.out.note(`${tokens.length} tokens, ${tokensPerSecond.toFixed(1)} per second`);
    });
}

interface WantedText {
  readonly input: string | Int32Array;
  readonly chat: boolean;
  readonly options: TextOptions;
}

/** A text, and how long it took once the model was loaded. */
interface TimedText {
  readonly generated: Generated;
  readonly seconds: number;
}

async function fromExport(
  path: string,
  { input, chat, options }: WantedText,
  dtype: string | undefined,
  context: CliContext,
): Promise<TimedText> {
  await using model = await openModelFolder(context.path(path), {
    signal: context.signal,
    ...(dtype !== undefined && { dtype }),
  });
  const prompt = chat && typeof input === "string" ? [{ role: "user", content: input } as const] : input;
  const show = shower(context);
  return await timed(() => model.generate(prompt, { ...options, onPiece: (piece) => show(piece.text) }));
}

async function fromCheckpoint(
  path: string,
  { input, chat, options }: WantedText,
  pooled: PoolOptions & AttentionOptions & { readonly plan?: string | undefined },
  context: CliContext,
): Promise<TimedText> {
  await using opened = await openModel(path, context);
  const { model } = opened.checkpoint;
  if (typeof input !== "string") checkSequence(input, model);
  const plan = pooled.plan === undefined ? undefined : await readPlan(pooled.plan, model, context);
  const attention = await chooseAttention(opened, pooled, context);
  await using pool = await openPool(opened, { ...pooled, workers: 1 }, context);
  const show = shower(context);
  return await timed(() =>
    pool.generate(input, {
      ...options,
      chat,
      ...(plan && { plan }),
      ...(attention && { attention: attention.source }),
      onToken: (_, text) => show(text),
    }),
  );
}

async function timed(write: () => Promise<Generated>): Promise<TimedText> {
  const started = performance.now();
  const generated = await write();
  return { generated, seconds: (performance.now() - started) / 1000 };
}

/** Prints text as it comes; a terminal gets nothing that would command it. */
function shower(context: CliContext): (text: string) => void {
  const terminal = context.io.stdout.isTTY ?? false;
  return (text) => context.out.stream(terminal ? printable(text) : text);
}

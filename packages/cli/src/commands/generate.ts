import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { CoppiceError } from "@coppice/core";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  examples,
  numberIn,
  planOption,
  seedOption,
  tokenIds,
  wholeNumber,
} from "../options.js";
import { askText, isInteractive } from "../terminal/ask.js";
import { printable } from "../terminal/printable.js";
import { openPool } from "../work/model-pool.js";
import { openModel } from "../work/open-model.js";
import { readPlan } from "../work/plan-file.js";
import { checkSequence } from "./logits.js";

export function generateCommand(context: CliContext): CommandUnknownOpts {
  return new Command("generate")
    .description("Continues a text, greedily or by sampling, and prints it while it is written.")
    .argument("<model>", "checkpoint folder")
    .option("--prompt <text>", "text to continue")
    .addOption(
      new Option("--ids <ids>", "token ids to continue, 1,2,3").argParser((text: string) => tokenIds(text)),
    )
    .addOption(new Option("--max-tokens <n>", "most tokens to write").argParser(wholeNumber(1)).default(128))
    .addOption(
      new Option("--temperature <t>", "0 takes the most likely token").argParser(numberIn(0, 100)).default(0),
    )
    .addOption(
      new Option("--top-p <p>", "sample from the most likely tokens of this total probability")
        .argParser(numberIn(0, 1))
        .default(1),
    )
    .addOption(seedOption)
    .addOption(
      new Option("--stop <text>", "end before this text; repeatable").argParser(
        (text: string, previous: readonly string[] | undefined) => [...(previous ?? []), text],
      ),
    )
    .option("--chat", "put the prompt into the checkpoint's chat template")
    .addOption(planOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addHelpText(
      "after",
      examples(
        'coppice generate ./model --prompt "Compute: 12 + 30 =" --max-tokens 8',
        'coppice generate ./model --prompt "Once" --temperature 0.8 --seed 3 --json',
      ),
    )
    .action(async (path, options) => {
      const [ids] = options.ids ?? [];
      const given = options.prompt ?? ids;
      if (options.prompt !== undefined && ids !== undefined) {
        throw new CoppiceError("COPPICE_USAGE", "give either --prompt or --ids, not both");
      }
      if (given === undefined && !isInteractive(context)) {
        throw new CoppiceError("COPPICE_USAGE", "give a --prompt or --ids");
      }
      const input = given ?? (await askText("Which text shall the model continue?", context));
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      if (ids) checkSequence(ids, model);
      const plan = options.plan === undefined ? undefined : await readPlan(options.plan, model, context);
      await using pool = await openPool(opened, { ...options, workers: 1 }, context);
      const started = performance.now();
      const terminal = context.io.stdout.isTTY ?? false;
      const generated = await pool.generate(input, {
        maxTokens: options.maxTokens,
        temperature: options.temperature,
        topP: options.topP,
        seed: options.seed,
        chat: options.chat ?? false,
        signal: context.signal,
        ...(options.stop && { stop: options.stop }),
        ...(plan && { plan }),
        onToken: (_, text) => context.out.stream(terminal ? printable(text) : text),
      });
      const seconds = (performance.now() - started) / 1000;
      const { text, tokens, promptTokens, finish } = generated;
      const tokensPerSecond = tokens.length / Math.max(seconds, 1e-9);
      context.out.result({ text, tokens, promptTokens, finish, tokensPerSecond, seconds }, () => "");
      context.out.note(`${tokens.length} tokens, ${tokensPerSecond.toFixed(1)} per second`);
    });
}

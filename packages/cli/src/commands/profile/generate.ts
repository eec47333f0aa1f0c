import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { CoppiceError, modelSize } from "@coppice/core";
import { generate, loadTokenizer } from "@coppice/evaluate";
import {
  checkStoreModel,
  expectedDrop,
  openPromptReader,
  openWideningRunner,
  type Pick,
  profilePlan,
  uniteProfiles,
  wideningPlans,
} from "@coppice/profiles";
import { readProfiles } from "@coppice/profiles/node";
import { formatBytes, formatScore } from "@coppice/report";
import type { CliContext } from "../../context.js";
import {
  backendOption,
  backendSetOption,
  examples,
  numberIn,
  seedOption,
  wholeNumber,
} from "../../options.js";
import { printable } from "../../terminal/printable.js";
import { backendHere } from "../../work/backend-here.js";
import { openModel } from "../../work/open-model.js";
import { promptIds } from "../../work/prompt-ids.js";
import {
  describePick,
  namedPick,
  pickFor,
  sizeOf,
  withPickOptions,
  withPromptOptions,
  withSizeOptions,
} from "./choose.js";

/** What tokens may drop more than the data of the profile did before the experts are taken for the wrong ones. */
const defaultSlack = 0.1;
const driftGroup = "Drift:";

export function generateCommand(context: CliContext): CommandUnknownOpts {
  const command = new Command("generate")
    .summary("continue a prompt with the experts of its profile alone")
    .description(
      "Finds the profile of a prompt, loads only its first experts and continues the prompt. Where the text drops more " +
        "of the routers' probability than the profile's own data did, more experts are loaded, what is there so far is " +
        "read again, and the text goes on.",
    )
    .argument("<model>", "checkpoint folder")
    .requiredOption("--profiles <file>", "file of `coppice profile build`")
    .option("--task <names>", "profile to begin with, instead of the one found for the prompt")
    .addOption(new Option("--max-tokens <n>", "most tokens to write").argParser(wholeNumber(1)).default(128))
    .addOption(
      new Option("--temperature <t>", "0 takes the most likely token").argParser(numberIn(0, 100)).default(0),
    )
    .addOption(seedOption);
  return withPickOptions(withPromptOptions(withSizeOptions(command)))
    .addOption(
      new Option(
        "--threshold <mass>",
        `mean dropped probability that is drift, 0 to 1; default: ${defaultSlack} more than the profile's data drops`,
      )
        .argParser(numberIn(0, 1))
        .helpGroup(driftGroup),
    )
    .addOption(
      new Option("--window <n>", "latest tokens that the mean is over")
        .argParser(wholeNumber(1))
        .default(64)
        .helpGroup(driftGroup),
    )
    .addOption(
      new Option("--widen <by>", "add the next experts of the lists, or those of the next nearest profile")
        .choices(["experts", "profiles"] as const)
        .default("experts" as const)
        .helpGroup(driftGroup),
    )
    .addOption(
      new Option("--step <n>", "--widen experts: per layer at a time; default: an eighth of the layer")
        .argParser(wholeNumber(1))
        .helpGroup(driftGroup),
    )
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addHelpText(
      "after",
      examples(
        'coppice profile generate ./model --profiles profiles.json --prompt "Compute: 12 + 30 =" --keep 4',
        'coppice profile generate ./model --profiles profiles.json --task math --prompt "Once" --keep 4 --json',
      ),
    )
    .action(async (path, options) => {
      const size = sizeOf(options);
      const { signal } = context;
      const store = await readProfiles(context.path(options.profiles), { signal });
      await using opened = await openModel(path, context);
      const { model, weights, folder } = opened.checkpoint;
      checkStoreModel(store, model);
      const ids = await promptIds(opened, options);
      const backend = await backendHere(options, context);
      const { task, widen: by, step } = options;
      if (task !== undefined && by === "profiles") {
        throw new CoppiceError(
          "COPPICE_USAGE",
          "--widen profiles needs the profile to be found for the prompt",
          {
            hint: "leave --task out",
          },
        );
      }
      const pick = task === undefined ? await found() : namedPick(store, task);
      const plans = wideningPlans(model, pick, { size, by, ...(step !== undefined && { step }) });
      const lists = uniteProfiles(pick.profiles);
      const expected = expectedDrop(lists, profilePlan(model, lists, size));
      const threshold = options.threshold ?? Math.min(1, expected + defaultSlack);
      const widenings: {
        readonly tokens: number;
        readonly dropped: number;
        readonly keep: readonly number[];
      }[] = [];
      let written = 0;
      await using runner = await openWideningRunner({
        ...{ backend, model, weights, plans, threshold, window: options.window, signal },
        onWiden({ drift, to }) {
          const keep = to.layers.map(({ experts }) => experts.length);
          widenings.push({ tokens: written, dropped: drift.dropped, keep });
          context.out.note(
            `After ${written} tokens ${formatScore(drift.dropped)} of the probability is dropped, more than ` +
              `${formatScore(threshold)}: loading ${keep.join(", ")} experts.`,
          );
        },
      });
      const terminal = context.io.stdout.isTTY ?? false;
      const tokenizer = await loadTokenizer(folder);
      const generated = await generate(runner, tokenizer, ids, {
        ...{ maxTokens: options.maxTokens, temperature: options.temperature, seed: options.seed, signal },
        onToken(_, text) {
          written++;
          context.out.stream(terminal ? printable(text) : text);
        },
      });
      const { text, tokens, promptTokens, finish } = generated;
      const bytes = modelSize(model, runner.plan).bytes;
      const dropped = runner.drift?.dropped ?? 0;
      context.out.result(
        {
          ...{ text, tokens, promptTokens, finish, bytes, threshold, dropped, widenings },
          picked: describePick(pick),
        },
        () => "",
      );
      const names = pick.profiles.map(({ name }) => printable(name)).join(" + ");
      context.out.note(
        `${tokens.length} tokens with ${names}, ${formatBytes(bytes)} of weights; ${formatScore(dropped)} dropped`,
      );

      async function found(): Promise<Pick> {
        await using reader = await openPromptReader(backend, { model, weights, signal });
        // Awaited here: the reader is let go at the end of this function.
        return await pickFor(reader, store, ids, options, signal);
      }
    });
}

import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { CoppiceError, modelSize } from "@coppice/core";
import { writeFileAtomic } from "@coppice/core/node";
import {
  checkStoreModel,
  expectedDrop,
  openPromptReader,
  type Pick,
  profilePlan,
  uniteProfiles,
} from "@coppice/profiles";
import { readProfiles } from "@coppice/profiles/node";
import { formatBytes, formatScore, formatShare } from "@coppice/report";
import type { CliContext } from "../../context.js";
import { backendOption, backendSetOption, examples } from "../../options.js";
import { formatFacts } from "../../terminal/format.js";
import { printable } from "../../terminal/printable.js";
import { backendHere } from "../../work/backend-here.js";
import { openModel } from "../../work/open-model.js";
import { promptIds } from "../../work/prompt-ids.js";
import { checkFileAbsent } from "../../work/write-checkpoint.js";
import {
  describePick,
  namedPick,
  pickFor,
  sizeOf,
  withPickOptions,
  withPromptOptions,
  withSizeOptions,
} from "./choose.js";

export function planCommand(context: CliContext): CommandUnknownOpts {
  const command = new Command("plan")
    .summary("write the plan of a task or prompt")
    .description(
      "Writes the plan that keeps the first experts of a task's profile, or of the profile that is found for a prompt. " +
        "Other commands run the model under it (--plan), or write it as a checkpoint (`coppice apply`).",
    )
    .argument("<model>", "checkpoint folder")
    .requiredOption("--profiles <file>", "file of `coppice profile build`")
    .option("--task <names>", "profile to take; several, separated by commas, are taken together")
    .option("--out <file>", "plan file to write; without it the plan is only described");
  return withPickOptions(withPromptOptions(withSizeOptions(command)))
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addHelpText(
      "after",
      examples(
        "coppice profile plan ./model --profiles profiles.json --task math --keep 4 --out math.plan.json",
        'coppice profile plan ./model --profiles profiles.json --prompt "Compute: 12 + 30 =" --budget 30MB --json',
      ),
    )
    .action(async (path, options) => {
      const size = sizeOf(options);
      const out = options.out === undefined ? undefined : context.path(options.out);
      if (out !== undefined) checkFileAbsent(out);
      const store = await readProfiles(context.path(options.profiles), { signal: context.signal });
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      checkStoreModel(store, model);
      const { task, prompt, ids } = options;
      if (task !== undefined && (prompt !== undefined || ids !== undefined)) {
        throw new CoppiceError("COPPICE_USAGE", "give either a --task or a prompt");
      }
      let pick: Pick;
      if (task !== undefined) pick = namedPick(store, task);
      else {
        const tokens = await promptIds(opened, options);
        const backend = await backendHere(options, context);
        await using reader = await openPromptReader(backend, {
          ...opened.checkpoint,
          signal: context.signal,
        });
        pick = await pickFor(reader, store, tokens, options, context.signal);
      }
      const lists = uniteProfiles(pick.profiles);
      const plan = profilePlan(model, lists, size);
      if (out !== undefined) await writeFileAtomic(out, `${JSON.stringify(plan)}\n`);
      const dropped = expectedDrop(lists, plan);
      const [before, after] = [modelSize(model).bytes, modelSize(model, plan).bytes];
      const keep = plan.layers.map(({ experts }) => experts.length);
      context.out.result(
        { ...(out !== undefined && { out }), picked: describePick(pick), keep, dropped, bytes: after, plan },
        () =>
          formatFacts([
            ["profile", pick.profiles.map(({ name }) => printable(name)).join(" + ")],
            ["experts kept", keep.join(", ")],
            ["drops", `${formatScore(dropped)} of the router's probability on the data of the profile`],
            ["weights", `${formatBytes(after)} of ${formatBytes(before)} (${formatShare(after, before)})`],
            ...(out === undefined ? [] : [["wrote", out] as const]),
          ]),
      );
    });
}

import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { checkStoreModel, openPromptReader } from "@coppice/profiles";
import { readProfiles } from "@coppice/profiles/node";
import { formatScore } from "@coppice/report";
import type { CliContext } from "../../context.js";
import { backendOption, backendSetOption, examples } from "../../options.js";
import { formatFacts, formatTable } from "../../terminal/format.js";
import { printable } from "../../terminal/printable.js";
import { backendHere } from "../../work/backend-here.js";
import { openModel } from "../../work/open-model.js";
import { promptIds } from "../../work/prompt-ids.js";
import { describePick, pickFor, withPickOptions, withPromptOptions } from "./choose.js";

export function pickCommand(context: CliContext): CommandUnknownOpts {
  const command = new Command("pick")
    .summary("find the profile of a prompt")
    .description(
      "Reads a prompt as far as the first MoE layer and names the profile whose prompts look most alike to its router. " +
        "Of that layer only as many experts are loaded as the router needs, of later layers nothing.",
    )
    .argument("<model>", "checkpoint folder")
    .requiredOption("--profiles <file>", "file of `coppice profile build`");
  return withPickOptions(withPromptOptions(command))
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addHelpText(
      "after",
      examples('coppice profile pick ./model --profiles profiles.json --prompt "Compute: 12 + 30 ="'),
    )
    .action(async (path, options) => {
      const store = await readProfiles(context.path(options.profiles), { signal: context.signal });
      await using opened = await openModel(path, context);
      checkStoreModel(store, opened.checkpoint.model);
      const ids = await promptIds(opened, options);
      const backend = await backendHere(options, context);
      await using reader = await openPromptReader(backend, { ...opened.checkpoint, signal: context.signal });
      const pick = await pickFor(reader, store, ids, options, context.signal);
      const nearest = pick.nearest.map(({ profile, distance }) => ({ name: profile.name, distance }));
      context.out.result({ ...describePick(pick), tokens: ids.length, nearest }, () =>
        [
          formatFacts([
            ["picked", `${pick.profiles.map(({ name }) => printable(name)).join(" + ")} (${pick.kind})`],
            ["margin", formatScore(pick.margin)],
          ]),
          formatTable(
            ["profile", "distance"],
            nearest.map(({ name, distance }) => [printable(name), formatScore(distance)]),
            [1],
          ),
        ].join("\n\n"),
      );
    });
}

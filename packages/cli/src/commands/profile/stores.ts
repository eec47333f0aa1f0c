import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { CoppiceError } from "@coppice/core";
import { expectedDrop, mergeStores, type ProfileStore, removeProfile } from "@coppice/profiles";
import { readProfiles, writeProfiles } from "@coppice/profiles/node";
import { formatScore } from "@coppice/report";
import type { CliContext } from "../../context.js";
import { examples } from "../../options.js";
import { formatFacts, formatTable } from "../../terminal/format.js";
import { printable } from "../../terminal/printable.js";
import { checkFileAbsent } from "../../work/write-checkpoint.js";

export function listCommand(context: CliContext): CommandUnknownOpts {
  return new Command("list")
    .summary("show the profiles of a file")
    .description(
      "Shows the profiles of a file, and what share of the router's probability each drops with the first three " +
        "quarters, half and quarter of its experts.",
    )
    .argument("<profiles>", "file of `coppice profile build`")
    .addHelpText("after", examples("coppice profile list profiles.json"))
    .action(async (file) => {
      const store = await readProfiles(context.path(file), { signal: context.signal });
      const { data, text } = profileTable(store);
      context.out.result({ model: store.model, ...data }, () =>
        [
          formatFacts([
            ["model", `${printable(store.model.family)}, ${printable(store.model.fingerprint)}`],
            ["compared by", store.statistic],
          ]),
          text,
        ].join("\n\n"),
      );
    });
}

export function mergeCommand(context: CliContext): CommandUnknownOpts {
  return new Command("merge")
    .summary("put the profiles of several files into one")
    .description(
      "Puts the profiles of several files of the same model into one file. No name may be there twice.",
    )
    .argument("<profiles...>", "files of `coppice profile build`")
    .requiredOption("--out <file>", "file of profiles to write")
    .addHelpText("after", examples("coppice profile merge math.json law.json --out both.json"))
    .action(async (files, options) => {
      const out = context.path(options.out);
      checkFileAbsent(out);
      if (files.length < 2) throw new CoppiceError("COPPICE_USAGE", "give two or more files to merge");
      const stores: ProfileStore[] = [];
      for (const file of files) {
        stores.push(await readProfiles(context.path(file), { signal: context.signal }));
      }
      await write(stores.reduce(mergeStores), out, context);
    });
}

export function removeCommand(context: CliContext): CommandUnknownOpts {
  return new Command("remove")
    .summary("leave profiles out")
    .description("Writes a file of profiles without some of them.")
    .argument("<profiles>", "file of `coppice profile build`")
    .argument("<names...>", "profiles to leave out")
    .requiredOption("--out <file>", "file of profiles to write")
    .addHelpText("after", examples("coppice profile remove profiles.json law --out fewer.json"))
    .action(async (file, names, options) => {
      const out = context.path(options.out);
      checkFileAbsent(out);
      const store = await readProfiles(context.path(file), { signal: context.signal });
      await write(names.reduce(removeProfile, store), out, context);
    });
}

async function write(store: ProfileStore, out: string, context: CliContext): Promise<void> {
  await writeProfiles(out, store, { signal: context.signal });
  const { data, text } = profileTable(store);
  context.out.result({ out, ...data }, () => [text, `wrote ${out}`].join("\n\n"));
}

const shares = [0.75, 0.5, 0.25];

/** The profiles of a store, for programs and for people. */
export function profileTable({ statistic, layers, profiles }: ProfileStore): {
  readonly data: Readonly<Record<string, unknown>>;
  readonly text: string;
} {
  const rows = profiles.map((profile) => ({
    name: profile.name,
    general: profile.general,
    criterion: profile.criterion,
    tokens: profile.tokens,
    dropped: shares.map((share) => ({
      share,
      dropped: expectedDrop(profile.layers, {
        layers: profile.layers.map(({ ranking }, i) => ({
          layer: layers[i]?.layer ?? i,
          experts: ranking.slice(0, Math.ceil(share * ranking.length)),
        })),
      }),
    })),
  }));
  const text = formatTable(
    ["profile", "criterion", "tokens", ...shares.map((share) => `drops at ${share}`)],
    rows.map(({ name, general, criterion, tokens, dropped }) => [
      `${printable(name)}${general ? " (general)" : ""}`,
      printable(criterion),
      Math.round(tokens).toLocaleString("en"),
      ...dropped.map((point) => formatScore(point.dropped)),
    ]),
    [2, 3, 4, 5],
  );
  return { data: { statistic, layers, profiles: rows }, text };
}

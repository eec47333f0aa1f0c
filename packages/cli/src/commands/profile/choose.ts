import { type Command, Option, type OptionValues } from "@commander-js/extra-typings";
import { CoppiceError } from "@coppice/core";
import {
  defaultMargin,
  findProfile,
  type Pick,
  type ProfileSize,
  type ProfileStore,
  type PromptReader,
  pickProfile,
} from "@coppice/profiles";
import { byteCount, list, numberIn, tokenIds, wholeNumber } from "../../options.js";

const promptGroup = "Prompt:";
const pickGroup = "Picking a profile:";
const sizeGroup = "Experts:";

/** Adds what gives a prompt. */
export function withPromptOptions<A extends unknown[], O extends OptionValues>(command: Command<A, O>) {
  return command
    .addOption(new Option("--prompt <text>", "the prompt").helpGroup(promptGroup))
    .addOption(
      new Option("--ids <ids>", "its token ids instead, 1,2,3")
        .argParser((text: string) => tokenIds(text))
        .helpGroup(promptGroup),
    )
    .addOption(new Option("--chat", "put it into the checkpoint's chat template").helpGroup(promptGroup));
}

/** Adds what to do when two profiles are about as near. */
export function withPickOptions<A extends unknown[], O extends OptionValues>(command: Command<A, O>) {
  return command
    .addOption(
      new Option("--margin <m>", "least margin of the nearest profile to be taken alone, 0 to 1")
        .argParser(numberIn(0, 1))
        .default(defaultMargin)
        .helpGroup(pickGroup),
    )
    .addOption(
      new Option("--otherwise <what>", "below it: the two nearest together, or the general profile")
        .choices(["union", "general"] as const)
        .default("union" as const)
        .helpGroup(pickGroup),
    );
}

/** Adds how many experts are kept. */
export function withSizeOptions<A extends unknown[], O extends OptionValues>(command: Command<A, O>) {
  return command
    .addOption(
      new Option("--keep <n>", "experts that every layer keeps")
        .argParser(wholeNumber(1))
        .helpGroup(sizeGroup),
    )
    .addOption(
      new Option("--budget <size>", "or: most bytes of all weights, such as 20GB")
        .argParser(byteCount)
        .helpGroup(sizeGroup),
    )
    .addOption(
      new Option("--uneven", "--budget: as many in each layer as drop the least together").helpGroup(
        sizeGroup,
      ),
    );
}

export interface PickOptions {
  readonly margin: number;
  readonly otherwise: "union" | "general";
}

export async function pickFor(
  reader: PromptReader,
  store: ProfileStore,
  ids: Int32Array,
  { margin, otherwise }: PickOptions,
  signal: AbortSignal,
): Promise<Pick> {
  return pickProfile(store, await reader.sums([ids], signal), { margin, otherwise });
}

/** The profiles that the user named, separated by commas, as if they had been picked. */
export function namedPick(store: ProfileStore, names: string): Pick {
  const profiles = list(names).map((name) => findProfile(store, name));
  return { kind: profiles.length > 1 ? "union" : "nearest", profiles, margin: 1, nearest: [] };
}

/** @throws COPPICE_USAGE unless the user gave one size */
export function sizeOf(options: {
  readonly keep?: number;
  readonly budget?: number;
  readonly uneven?: true;
}): ProfileSize {
  const { keep, budget, uneven = false } = options;
  if (keep !== undefined && budget === undefined && !uneven) return { keep };
  if (keep === undefined && budget !== undefined) return { bytes: budget, uniform: !uneven };
  throw new CoppiceError("COPPICE_USAGE", "give either --keep or --budget", {
    hint: "--uneven goes with --budget",
  });
}

/** What was picked, for programs. */
export function describePick({ kind, profiles, margin }: Pick) {
  return { kind, profiles: profiles.map(({ name }) => name), margin };
}

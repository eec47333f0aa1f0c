import {
  Argument,
  Command,
  type CommandUnknownOpts,
  InvalidArgumentError,
  Option,
} from "@commander-js/extra-typings";
import { type CollectedStatistics, mergeStatistics, scaleStatistics } from "@coppice/calibrate";
import { readStatistics, writeStatistics } from "@coppice/calibrate/node";
import { CoppiceError, extrasOf, unusedExperts } from "@coppice/core";
import type { CliContext } from "../context.js";
import { examples, list } from "../options.js";
import { formatFacts, formatTable } from "../terminal/format.js";
import { printable } from "../terminal/printable.js";
import { describeSample, sampleOf } from "../terminal/sample.js";
import { warnUnused } from "../terminal/unused-experts.js";
import { checkFileAbsent } from "../work/write-checkpoint.js";

export function statsCommand(context: CliContext): CommandUnknownOpts {
  return new Command("stats")
    .description(
      "Shows a statistics file of `coppice calibrate`, or merges several of the same model and of different data into " +
        "the statistics of all their data. With weights, every token of a file counts as often as its weight says, and is as " +
        "much likelier to be in the sample.",
    )
    .addArgument(new Argument("<action>").choices(["show", "merge"] as const))
    .argument("<files...>", "statistics files")
    .addOption(
      new Option("--weights <numbers>", "merge: one weight per file, separated by commas").argParser(weights),
    )
    .option("--out <file>", "merge: statistics file to write")
    .addHelpText(
      "after",
      examples(
        "coppice stats show stats.safetensors",
        "coppice stats merge code.safetensors math.safetensors --weights 1,2 --out both.safetensors",
      ),
    )
    .action(async (action, files, options) => {
      if (action === "merge") return merge(files, options, context);
      if (files.length > 1 || options.out !== undefined || options.weights !== undefined) {
        throw new CoppiceError(
          "COPPICE_USAGE",
          "`coppice stats show` takes one file and no options of merge",
        );
      }
      const [file = ""] = files;
      const statistics = await readStatistics(context.path(file), { signal: context.signal });
      show(statistics, {}, [], context);
    });
}

async function merge(
  files: readonly string[],
  options: { readonly weights?: readonly number[]; readonly out?: string },
  context: CliContext,
): Promise<void> {
  const { weights: factors, out: target } = options;
  if (files.length < 2 || target === undefined) {
    throw new CoppiceError("COPPICE_USAGE", "`coppice stats merge` takes two or more files and --out");
  }
  if (factors && factors.length !== files.length) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `--weights has ${factors.length} numbers for ${files.length} files; give one per file`,
    );
  }
  const out = context.path(target);
  checkFileAbsent(out);
  let sum: CollectedStatistics | undefined;
  for (const [i, file] of files.entries()) {
    const part = await readStatistics(context.path(file), { signal: context.signal });
    const factor = factors?.[i] ?? 1;
    const scaled = factor === 1 ? part : scaleStatistics(part, factor);
    sum = sum ? mergeStatistics(sum, scaled) : scaled;
  }
  await writeStatistics(out, sum as CollectedStatistics, { signal: context.signal });
  show(sum as CollectedStatistics, { out }, [["wrote", out]], context);
}

function show(
  statistics: CollectedStatistics,
  data: Readonly<Record<string, unknown>>,
  facts: readonly (readonly [string, string])[],
  context: CliContext,
): void {
  const { model, tokens, sources, layers } = statistics;
  const unused = unusedExperts(statistics);
  warnUnused(unused, context);
  const rows = layers.map(({ layer, count }) => ({
    layer,
    experts: count.length,
    unused: count.filter((tokens) => tokens === 0).length,
    counts: Array.from(count),
  }));
  const extras = extrasOf(statistics);
  const sample = sampleOf(statistics);
  context.out.result(
    { ...data, model, tokens, sources, extras, sample: sample ?? null, layers: rows, unused },
    () =>
      [
        formatFacts([
          ...facts,
          ["model", printable(model)],
          ["tokens", round(tokens)],
          ["with", extras.join(", ") || "nothing more"],
          ["sample", sample ? describeSample(sample) : "none"],
        ]),
        formatTable(
          ["data", "kind", "sequences", "tokens", "weight", "options"],
          sources.map((source) => [
            printable(source.name),
            source.kind,
            round(source.sequences),
            round(source.tokens),
            String(source.weight),
            Object.entries(source.options)
              .map(([key, value]) => `${key}=${value}`)
              .join(" "),
          ]),
          [2, 3, 4],
        ),
        formatTable(
          ["layer", "experts", "unused", "least tokens", "most tokens"],
          rows.map(({ layer, experts, unused, counts }) => [
            String(layer),
            String(experts),
            String(unused),
            round(Math.min(...counts)),
            round(Math.max(...counts)),
          ]),
          [0, 1, 2, 3, 4],
        ),
      ].join("\n\n"),
  );
}

function round(value: number): string {
  return value.toLocaleString("en", { maximumFractionDigits: 1 });
}

/** `1,0.5` */
function weights(text: string): number[] {
  const values = list(text).map(Number);
  if (values.length === 0 || !values.every((value) => value > 0 && value < Number.POSITIVE_INFINITY)) {
    throw new InvalidArgumentError("expected numbers above 0, such as 1,2.");
  }
  return values;
}

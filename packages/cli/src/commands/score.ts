import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import {
  CoppiceError,
  type Criterion,
  collectingFlags,
  extrasOf,
  type Statistics,
  sampleFieldsOf,
  unusedExperts,
} from "@coppice/core";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  criterionSetOption,
  dataLimitOption,
  dataOption,
  examples,
  list,
  seedOption,
  statsOption,
  wholeNumber,
  workersOption,
} from "../options.js";
import { listPlugins } from "../plugins/find-plugin.js";
import { scoreCardText } from "../terminal/score-card.js";
import { warnUnused } from "../terminal/unused-experts.js";
import { checkKeepFits } from "../work/check-keep-fits.js";
import { findStatistics, type NamedCriterion, openCriterion, scoreBy } from "../work/criterion-scores.js";
import { openModel } from "../work/open-model.js";
import { type CriterionScores, scoreCard } from "../work/score-card.js";

export function scoreCommand(context: CliContext): CommandUnknownOpts {
  return new Command("score")
    .description(
      "Scores every expert by one criterion or by several, side by side: the larger the score, the more the expert " +
        "matters. Several are compared by the rank correlation of their scores, and with statistics by the share of " +
        "router probability that each drops for every number of experts kept.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option(
        "--criterion <names>",
        "criterion plugins, separated by commas; default: all built-in ones but random that can be computed",
      ).argParser(list),
    )
    .addOption(criterionSetOption)
    .addOption(
      new Option(
        "--keep <n>",
        "experts that every layer is to keep, for criteria that choose sets, such as naee",
      ).argParser(wholeNumber(1)),
    )
    .addOption(statsOption)
    .addOption(dataOption)
    .addOption(dataLimitOption)
    .addOption(seedOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice score ./model --stats stats.safetensors --keep 4",
        "coppice score ./model --criterion reap,frequency --data task.jsonl",
        "coppice score ./model --criterion weight-magnitude --json",
      ),
    )
    .action(async (path, options) => {
      const names = options.criterion ?? builtInNames(context);
      checkNames(names, options.set);
      const criteria = await Promise.all(
        names.map(async (name) => ({ name, criterion: await openCriterion(name, options.set, context) })),
      );
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      if (options.keep !== undefined) checkKeepFits(model, options.keep);
      const given = options.stats !== undefined || options.data !== undefined;
      const computable = criteria.filter(
        ({ criterion }) => options.criterion || given || !criterion.needs.statistics,
      );
      // What takes more to collect is collected for criteria that were asked for, and read for all.
      const needing = computable.filter(
        ({ criterion: { needs } }) => needs.statistics && (options.criterion || !needsMore(needs)),
      );
      const statistics =
        needing.length > 0
          ? await findStatistics(
              opened,
              needing.map(({ name, criterion: { needs } }) => ({ name, needs })),
              options,
              context,
            )
          : undefined;
      const wanted = computable.filter(
        ({ criterion: { needs } }) => options.criterion || !needsMore(needs, statistics),
      );
      noteLeftOut(criteria, wanted, context);
      const scored: CriterionScores[] = [];
      for (const item of wanted) {
        const scores = await scoreBy(item, opened, { ...options, statistics }, context);
        scored.push({ criterion: item.name, scores });
      }
      const unused = statistics ? unusedExperts(statistics) : [];
      warnUnused(unused, context);
      const card = scoreCard(model, scored, statistics);
      const [only] = scored.length === 1 ? scored : [];
      context.out.result({ ...only, keep: options.keep, ...card, unused }, () => scoreCardText(card));
    });
}

/** Random scores say nothing about experts, so that they have no place beside the others unless asked for. */
function builtInNames(context: CliContext): string[] {
  return listPlugins(context.io.cwd)
    .filter(({ kind, builtIn, name }) => kind === "criterion" && builtIn && name !== "random")
    .map(({ name }) => name);
}

/** Whether a criterion needs something of what is collected on demand, beside what `statistics` have. */
function needsMore(
  { extras = [], sample = [] }: Criterion["needs"],
  statistics: Statistics = { model: "", tokens: 0, layers: [] },
): boolean {
  const [found, sampled] = [extrasOf(statistics), sampleFieldsOf(statistics)];
  return !extras.every((field) => found.includes(field)) || !sample.every((field) => sampled.includes(field));
}

function noteLeftOut(
  all: readonly NamedCriterion[],
  wanted: readonly NamedCriterion[],
  context: CliContext,
): void {
  const out = all.filter((item) => !wanted.includes(item));
  if (out.length === 0) return;
  const needs = out.map(({ criterion }) => criterion.needs);
  const flags = collectingFlags({
    extras: [...new Set(needs.flatMap(({ extras = [] }) => extras))],
    sample: [...new Set(needs.flatMap(({ sample = [] }) => sample))],
  });
  context.out.note(
    `Left out: ${out.map(({ name }) => name).join(", ")}. ` +
      (needs.some((each) => !needsMore(each))
        ? "They need statistics: give --stats or --data."
        : `They need statistics of \`coppice calibrate ${flags}\`.`),
  );
}

function checkNames(names: readonly string[], set: Readonly<Record<string, unknown>> | undefined): void {
  if (names.length === 0) throw new CoppiceError("COPPICE_USAGE", "--criterion names no criterion");
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new CoppiceError("COPPICE_USAGE", `--criterion names ${twice} twice`);
  if (set && names.length > 1) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `--set gives options to one criterion, and ${names.length} are to be scored`,
      { hint: "name one criterion by --criterion" },
    );
  }
}

import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { readStatistics } from "@coppice/calibrate/node";
import { CoppiceError, type MoeModel, type Statistics } from "@coppice/core";
import {
  addProfile,
  checkStoreModel,
  createStore,
  type ExpertLists,
  type MemoryRow,
  type Profile,
  planMemory,
  uniteProfiles,
} from "@coppice/profiles";
import { readProfiles, readTrace } from "@coppice/profiles/node";
import { formatBytes, formatScore } from "@coppice/report";
import type { CliContext } from "../../context.js";
import {
  byteCount,
  criterionOption,
  criterionSetOption,
  examples,
  numberIn,
  seedOption,
} from "../../options.js";
import { formatFacts, formatTable } from "../../terminal/format.js";
import { openCriterion, scoreBy } from "../../work/criterion-scores.js";
import { type OpenModel, openModel } from "../../work/open-model.js";
import { namedPick } from "../profile/choose.js";
import { bandwidthOf, learnFrom, resultCells, resultHead, withCacheOptions } from "./cache-options.js";

export function planCommand(context: CliContext): CommandUnknownOpts {
  const command = new Command("plan")
    .summary("say for a budget of memory whether to prune, to page, or both")
    .description(
      "Says for a budget of memory what comes of keeping each number of experts per layer: the probability that is " +
        "dropped with the others, and what has to be loaded per token where not all that is kept fits. The answer is " +
        "the row within the tolerance that loads the least.",
    )
    .argument("<model>", "checkpoint folder; only its headers are read")
    .requiredOption("--trace <file>", "file of `coppice trace record`, of the whole model")
    .addOption(
      new Option("--budget <size>", "most bytes of weights in memory, such as 20GB")
        .argParser(byteCount)
        .makeOptionMandatory(),
    )
    .option("--profiles <file>", "file of `coppice profile build` that ranks the experts, with --task")
    .option("--task <names>", "its profile; several, separated by commas, are taken together")
    .option(
      "--stats <file>",
      "statistics of tokens to come: what they drop; without profiles a criterion also ranks the experts by them",
    )
    .addOption(criterionOption)
    .addOption(criterionSetOption)
    .addOption(seedOption)
    .addOption(
      new Option("--tolerance <mass>", "dropped probability that is accepted, 0 to 1")
        .argParser(numberIn(0, 1))
        .default(0.05),
    )
    .addOption(
      new Option("--policy <name>", "of the caches, one for each layer")
        .choices(["lru", "lfu", "static"] as const)
        .default("lru" as const),
    );
  return withCacheOptions(command)
    .addHelpText(
      "after",
      examples(
        "coppice trace plan ./model --trace trace.safetensors --stats heldout.safetensors --budget 30MB",
        "coppice trace plan ./model --trace trace.safetensors --profiles p.json --task math --budget 30MB --json",
      ),
    )
    .action(async (path, options) => {
      const bandwidth = bandwidthOf(options);
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      const trace = await readTrace(context.path(options.trace), { signal: context.signal });
      const lists = await findLists(opened, options, context);
      const learn = await learnFrom(options.learn, context);
      const { budget, tolerance, policy } = options;
      const { rows, answer } = planMemory({
        ...{ model, trace, lists, budget, tolerance, policy },
        ...(learn !== undefined && { learn }),
        ...(bandwidth && { bandwidth }),
      });
      context.out.result({ budget, tolerance, policy, rows, answer: answer ?? null }, () =>
        [
          formatFacts([
            ["budget", `${formatBytes(budget)}, of which ${formatBytes(trace.otherBytes)} are no experts`],
            ["answer", describeAnswer(answer, tolerance)],
          ]),
          rowTable(rows, bandwidth !== undefined),
        ].join("\n\n"),
      );
    });
}

interface ListOptions {
  readonly profiles?: string;
  readonly task?: string;
  readonly stats?: string;
  readonly criterion: string;
  readonly set?: Readonly<Record<string, unknown>>;
  readonly seed: number;
}

/** Who ranks the experts, and whose probability is dropped. */
async function findLists(opened: OpenModel, options: ListOptions, context: CliContext): Promise<ExpertLists> {
  const { profiles, task, stats } = options;
  const { model } = opened.checkpoint;
  if ((profiles === undefined) !== (task === undefined)) {
    throw new CoppiceError("COPPICE_USAGE", "--profiles and --task go together");
  }
  const { signal } = context;
  const statistics = stats === undefined ? undefined : await readStatistics(context.path(stats), { signal });
  if (profiles === undefined || task === undefined) {
    if (!statistics) throw new CoppiceError("COPPICE_USAGE", "give --stats, or --profiles with a --task");
    const criterion = {
      name: options.criterion,
      criterion: await openCriterion(options.criterion, options.set, context),
    };
    const scores = await scoreBy(criterion, opened, { seed: options.seed, statistics }, context);
    return profileOf(model, statistics, scores).layers;
  }
  const store = await readProfiles(context.path(profiles), { signal });
  checkStoreModel(store, model);
  const lists = uniteProfiles(namedPick(store, task).profiles);
  if (!statistics) return lists;
  const tested = profileOf(
    model,
    statistics,
    statistics.layers.map(({ probability }) => probability),
  );
  return lists.map(({ ranking }, i) => ({
    ranking,
    probability: tested.layers[i]?.probability ?? new Float32Array(ranking.length),
  }));
}

function profileOf(model: MoeModel, statistics: Statistics, scores: readonly Float64Array[]): Profile {
  const profile = { name: "tokens to come", model, statistics, scores, criterion: "probability" };
  return addProfile(createStore(model), profile).profiles[0] as Profile;
}

const kinds = { whole: "the whole model", prune: "prune", page: "page", both: "prune and page" } as const;

function describeAnswer(answer: MemoryRow | undefined, tolerance: number): string {
  if (!answer) return `none drops at most ${formatScore(tolerance)}; raise the budget or the tolerance`;
  const { kind, keep, slots, dropped } = answer;
  const held = slots < keep ? `, ${slots} of them in memory` : "";
  return `${kinds[kind]}: ${keep} experts per layer${held}; ${formatScore(dropped)} of the probability is dropped`;
}

function rowTable(rows: readonly MemoryRow[], withSpeed: boolean): string {
  return formatTable(
    [
      "keep",
      "in memory",
      "way",
      "drops",
      ...resultHead,
      "belady loads",
      ...(withSpeed ? ["tokens per second"] : []),
    ],
    rows.map(({ keep, slots, kind, dropped, cache, beladyMissBytes = 0 }) => {
      const cells = cache ? resultCells(cache, withSpeed) : ["", "", "", "", ...(withSpeed ? [""] : [])];
      return [
        String(keep),
        String(slots),
        kinds[kind],
        formatScore(dropped),
        ...cells.slice(0, 4),
        cache ? formatBytes(Math.round(beladyMissBytes)) : "",
        ...cells.slice(4),
      ];
    }),
    [0, 1, 3, 4, 5, 6, 7, 8, 9],
  );
}

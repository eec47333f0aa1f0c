import { Command, type CommandUnknownOpts, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { type CachePolicy, cachePolicies, simulateCache, traceTokens } from "@coppice/profiles";
import { readTrace } from "@coppice/profiles/node";
import { formatBytes } from "@coppice/report";
import type { CliContext } from "../../context.js";
import { examples, list, wholeNumber } from "../../options.js";
import { formatFacts, formatTable } from "../../terminal/format.js";
import { printable } from "../../terminal/printable.js";
import {
  bandwidthOf,
  capacities,
  learnFrom,
  resultCells,
  resultHead,
  withCacheOptions,
} from "./cache-options.js";

export function simulateCommand(context: CliContext): CommandUnknownOpts {
  const command = new Command("simulate")
    .summary("replay a trace against caches of experts")
    .description(
      "Replays a trace against caches that hold some of the experts. Says how many uses find their expert in memory, " +
        "what is loaded per token, and with bandwidths how many tokens per second that allows.",
    )
    .argument("<trace>", "file of `coppice trace record`")
    .addOption(
      new Option(
        "--capacity <sizes>",
        "experts that a cache holds, or bytes of them; several separated by commas",
      )
        .argParser(capacities)
        .makeOptionMandatory(),
    )
    .option("--global", "one cache for all layers instead of one for each")
    .addOption(
      new Option(
        "--policies <names>",
        `some of ${cachePolicies.join(", ")}; default: all, static only with --learn`,
      ).argParser(policies),
    )
    .addOption(
      new Option("--half-life <n>", "lfu: tokens after which a use counts half")
        .argParser(wholeNumber(1))
        .default(256),
    );
  return withCacheOptions(command)
    .addHelpText(
      "after",
      examples(
        "coppice trace simulate trace.safetensors --capacity 2,4,6",
        "coppice trace simulate trace.safetensors --capacity 20MB --global --learn first-half --json",
        "coppice trace simulate trace.safetensors --capacity 4 --memory-bandwidth 40GB --storage-bandwidth 3GB",
      ),
    )
    .action(async (file, options) => {
      const bandwidth = bandwidthOf(options);
      const trace = await readTrace(context.path(file), { signal: context.signal });
      const learn = await learnFrom(options.learn, context);
      const simulations = options.capacity.map((capacity) => ({
        capacity,
        ...simulateCache(trace, {
          capacity,
          scope: options.global ? "global" : "layer",
          halfLife: options.halfLife,
          ...(options.policies && { policies: options.policies }),
          ...(learn !== undefined && { learn }),
          ...(bandwidth && { bandwidth }),
        }),
      }));
      const { prefill, decode } = traceTokens(trace);
      const learned = simulations[0]?.learned ?? "nothing";
      const sequences = simulations[0]?.sequences ?? 0;
      const scope = options.global ? "global" : "layer";
      context.out.result({ name: trace.name, prefill, decode, scope, sequences, learned, simulations }, () =>
        [
          formatFacts([
            [
              "trace",
              `${printable(trace.name)}, ${trace.sequences.length} sequences, of which ${sequences} are tested`,
            ],
            ["tokens", `${prefill.toLocaleString("en")} of prompts, ${decode.toLocaleString("en")} decoded`],
            ["caches", options.global ? "one for all layers" : "one for each layer"],
            ...(learned === "nothing" ? [] : [["static learned from", learned] as const]),
          ]),
          formatTable(
            ["capacity", "policy", ...resultHead, ...(bandwidth ? ["tokens per second"] : [])],
            simulations.flatMap(({ capacity, policies: results }) =>
              results.map((result) => [
                "experts" in capacity ? String(capacity.experts) : formatBytes(capacity.bytes),
                result.policy,
                ...resultCells(result, bandwidth !== undefined),
              ]),
            ),
            [0, 2, 3, 4, 5, 6],
          ),
        ].join("\n\n"),
      );
    });
}

function policies(text: string): CachePolicy[] {
  return list(text).map((name) => {
    const policy = cachePolicies.find((known) => known === name);
    if (policy === undefined) throw new InvalidArgumentError(`expected some of ${cachePolicies.join(", ")}.`);
    return policy;
  });
}

import { type Command, InvalidArgumentError, Option, type OptionValues } from "@commander-js/extra-typings";
import { CoppiceError } from "@coppice/core";
import type { Bandwidth, CacheOptions, PolicyResult } from "@coppice/profiles";
import { readTrace } from "@coppice/profiles/node";
import { formatBytes, formatScore } from "@coppice/report";
import type { CliContext } from "../../context.js";
import { byteCount } from "../../options.js";

const speedGroup = "Speed:";

/** Adds what `static` learns from and what predictions of speed need. */
export function withCacheOptions<A extends unknown[], O extends OptionValues>(command: Command<A, O>) {
  return command
    .option(
      "--learn <from>",
      "what the list of static is made from: another trace, first-half (the second is tested), or tested-part",
    )
    .addOption(
      new Option("--memory-bandwidth <size>", "bytes per second at which weights are read from memory")
        .argParser(byteCount)
        .helpGroup(speedGroup),
    )
    .addOption(
      new Option("--storage-bandwidth <size>", "bytes per second at which experts are loaded, such as 3GB")
        .argParser(byteCount)
        .helpGroup(speedGroup),
    );
}

/** @throws COPPICE_USAGE when only one bandwidth is given */
export function bandwidthOf(options: {
  readonly memoryBandwidth?: number;
  readonly storageBandwidth?: number;
}): Bandwidth | undefined {
  const { memoryBandwidth: memory, storageBandwidth: storage } = options;
  if (memory === undefined && storage === undefined) return undefined;
  if (memory !== undefined && storage !== undefined) return { memory, storage };
  throw new CoppiceError("COPPICE_USAGE", "give both --memory-bandwidth and --storage-bandwidth, or neither");
}

export async function learnFrom(
  text: string | undefined,
  context: CliContext,
): Promise<CacheOptions["learn"]> {
  if (text === undefined || text === "first-half" || text === "tested-part") return text;
  return readTrace(context.path(text), { signal: context.signal });
}

/** `4,8`: experts; `20MB`: bytes. */
export function capacities(text: string): CacheOptions["capacity"][] {
  const parts = text.split(",").map((part) => part.trim());
  if (parts.includes("")) throw new InvalidArgumentError("expected numbers or sizes such as 4,8 or 20MB.");
  return parts.map((part) => (/^\d+$/.test(part) ? { experts: Number(part) } : { bytes: byteCount(part) }));
}

/** Cells of a table row: what the caches do in both phases. */
export function resultCells({ prefill, decode, speed }: PolicyResult, withSpeed: boolean): string[] {
  return [
    formatScore(prefill.hitRatio),
    formatBytes(Math.round(prefill.missBytes)),
    formatScore(decode.hitRatio),
    formatBytes(Math.round(decode.missBytes)),
    ...(withSpeed ? [speed ? `${speed.serial.toFixed(1)} to ${speed.overlapped.toFixed(1)}` : ""] : []),
  ];
}

export const resultHead = ["prefill hits", "loads per token", "decode hits", "loads per token"];

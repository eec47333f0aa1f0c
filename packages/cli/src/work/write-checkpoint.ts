import { existsSync } from "node:fs";
import { basename, dirname, isAbsolute, relative } from "node:path";
import {
  applyPlan,
  type JsonObject,
  type OutputLayout,
  type OutputSummary,
  predictOutput,
} from "@coppice/checkpoint";
import { folderTarget } from "@coppice/checkpoint/node";
import { type AttentionPlan, CoppiceError, modelSize, type Plan, RunEmitter } from "@coppice/core";
import { formatBytes, formatCount, formatShare } from "@coppice/report";
import type { CliContext } from "../context.js";
import { formatFacts } from "../terminal/format.js";
import type { OpenModel } from "./open-model.js";

export interface WriteRequest {
  readonly opened: OpenModel;
  readonly plan: Plan;
  /** Absolute path of the folder to write. */
  readonly out: string;
  readonly dryRun: boolean | undefined;
  readonly maxShardBytes: number | undefined;
  /** Default: what stock runtimes load. */
  readonly layout?: OutputLayout | undefined;
  /** Default: the checkpoint's own. */
  readonly attention?: AttentionPlan | undefined;
  /** Goes into `coppice.json`. */
  readonly metadata: JsonObject;
}

/** What `apply`, `prune` and `merge` report about the checkpoint that they wrote or would write. */
export interface WrittenCheckpoint {
  readonly out: string;
  readonly dryRun: boolean;
  /** Bytes of weights, headers not included. */
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  readonly parametersBefore: number;
  readonly parametersAfter: number;
  readonly activeParametersBefore: number;
  readonly activeParametersAfter: number;
  /** Bytes of all files, tokenizer and headers included. */
  readonly fileBytes: number;
  readonly files: OutputSummary["files"];
  /** Experts that fill up smaller layers and are never chosen, and their bytes, which are part of the weights. */
  readonly padded: OutputSummary["padded"];
}

/** Fails before any work when the output could not be written at its end. @throws COPPICE_IO_EXISTS */
export function checkAbsent(out: string): void {
  if (!existsSync(out)) return;
  throw new CoppiceError("COPPICE_IO_EXISTS", `${out} exists already and is not overwritten`, {
    hint: "give another name, or remove this one",
    details: { path: out },
  });
}

/** As `checkAbsent`, for a file: its folder has to be there. @throws COPPICE_IO_EXISTS, COPPICE_USAGE */
export function checkFileAbsent(out: string): void {
  checkAbsent(out);
  const folder = dirname(out);
  if (existsSync(folder)) return;
  throw new CoppiceError("COPPICE_USAGE", `there is no folder ${folder} to write ${basename(out)} to`, {
    hint: "create the folder first",
    details: { path: out },
  });
}

/** A folder inside the source would change the source. @throws COPPICE_USAGE */
export function checkOutside(out: string, source: string): void {
  const way = relative(source, out);
  if (way.startsWith("..") || isAbsolute(way)) return;
  throw new CoppiceError("COPPICE_USAGE", `${out} lies inside the checkpoint that is read, ${source}`, {
    hint: "give an output folder somewhere else",
    details: { path: out },
  });
}

/** Writes the checkpoint of a plan, or with `dryRun` only says what it would be. */
export async function writeCheckpoint(
  request: WriteRequest,
  context: CliContext,
): Promise<WrittenCheckpoint> {
  const { opened, plan, out, maxShardBytes, layout, attention, metadata, dryRun = false } = request;
  const { checkpoint } = opened;
  checkOutside(out, opened.path);
  const options = {
    metadata,
    ...(maxShardBytes !== undefined && { maxShardBytes }),
    ...(layout !== undefined && { layout }),
    ...(attention && { attention }),
  };
  checkAbsent(out);
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  const summary = dryRun
    ? await predictOutput(checkpoint, plan, { ...options, signal: context.signal })
    : await applyPlan(checkpoint, plan, folderTarget(out), { ...options, emitter, signal: context.signal });
  context.out.settle();
  const before = modelSize(checkpoint.model);
  const after = modelSize(checkpoint.model, plan);
  return {
    out,
    dryRun,
    // All of the files, as in the output: other parts of the model and multi-token prediction included.
    bytesBefore: [...checkpoint.tensors.values()].reduce((sum, { begin, end }) => sum + end - begin, 0),
    bytesAfter: summary.tensorBytes,
    parametersBefore: before.parameters,
    parametersAfter: after.parameters,
    activeParametersBefore: before.activeParameters,
    activeParametersAfter: after.activeParameters,
    fileBytes: summary.bytes,
    files: summary.files,
    padded: summary.padded,
  };
}

export function describeWritten(written: WrittenCheckpoint): string {
  const change = (before: number, after: number, format: (value: number) => string) =>
    `${format(before)} -> ${format(after)} (${formatShare(after, before)})`;
  const { out, dryRun, files, fileBytes, padded } = written;
  return formatFacts([
    [dryRun ? "would write" : "wrote", `${out} (${files.length} files, ${formatBytes(fileBytes)})`],
    ["weights", change(written.bytesBefore, written.bytesAfter, formatBytes)],
    ["parameters", change(written.parametersBefore, written.parametersAfter, formatCount)],
    ["active per token", change(written.activeParametersBefore, written.activeParametersAfter, formatCount)],
    ...(padded.experts === 0
      ? []
      : ([
          ["filled up", `${padded.experts} experts that are never chosen, ${formatBytes(padded.bytes)}`],
        ] as const)),
  ]);
}

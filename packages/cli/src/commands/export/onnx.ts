import { Option } from "@commander-js/extra-typings";
import { folderTarget } from "@coppice/checkpoint/node";
import { type AttentionPlan, RunEmitter } from "@coppice/core";
import { type ExportTarget, exportOnnx, exportTargets } from "@coppice/export-onnx";
import { formatBytes } from "@coppice/report";
import type { CliContext } from "../../context.js";
import { byteCount, wholeNumber } from "../../options.js";
import { formatFacts } from "../../terminal/format.js";
import type { OpenModel } from "../../work/open-model.js";

const group = "ONNX:";

export const targetOption = new Option(
  "--target <name>",
  "where it runs: cpu (onnxruntime-node), wasm (browsers), webgpu (browsers with a graphics card)",
)
  .choices(exportTargets)
  .default("cpu" as const)
  .helpGroup(group);

export const expertOutputsOption = new Option(
  "--expert-outputs",
  "give the chosen experts of every layer as well, experts.0 and so on",
).helpGroup(group);

export const attentionLengthOption = new Option(
  "--attention-length <n>",
  "tokens of context that the rules of the attention plan are resolved at; default: the longest text that the graph runs",
)
  .argParser(wholeNumber(1))
  .helpGroup(group);

export const maxFileOption = new Option(
  "--max-file-size <size>",
  "most bytes per file of weights; default 2GB, what browsers hold at once",
)
  .argParser(byteCount)
  .helpGroup(group);

export interface OnnxRequest {
  readonly opened: OpenModel;
  /** Absolute path of the folder to write. */
  readonly out: string;
  readonly target: ExportTarget;
  readonly expertOutputs: boolean | undefined;
  readonly attention: AttentionPlan | undefined;
  readonly attentionLength: number | undefined;
  readonly maxFileBytes: number | undefined;
}

export async function exportOnnxFolder(request: OnnxRequest, context: CliContext): Promise<void> {
  const { opened, out, target, expertOutputs = false, attention, attentionLength, maxFileBytes } = request;
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  const summary = await exportOnnx(opened.checkpoint, folderTarget(out), {
    target,
    expertOutputs,
    attention: attention ?? null,
    ...(attentionLength !== undefined && { attentionLength }),
    ...(maxFileBytes !== undefined && { maxFileBytes }),
    emitter,
    signal: context.signal,
  });
  context.out.settle();
  const { files, bytes, type, contextLength, attention: kept } = summary;
  context.out.result({ format: "onnx", out, ...summary }, () =>
    formatFacts([
      ["wrote", `${context.shown(out)} (${files.length} files, ${formatBytes(bytes)})`],
      ["weights", type],
      ["target", target],
      ["context", `${contextLength} tokens`],
      ...(kept
        ? [["attention", `density ${kept.density.toFixed(2)} at ${kept.length} tokens`] as const]
        : []),
    ]),
  );
}

import { join } from "node:path";
import { Option } from "@commander-js/extra-typings";
import { folderTarget } from "@coppice/checkpoint/node";
import { RunEmitter } from "@coppice/core";
import { type GgufFileType, writeGguf } from "@coppice/gguf";
import { formatBytes } from "@coppice/report";
import type { CliContext } from "../../context.js";
import { formatFacts } from "../../terminal/format.js";
import type { OpenModel } from "../../work/open-model.js";

const group = "GGUF:";

export const ggufTypes = { f16: "F16", q8_0: "Q8_0", q4_0: "Q4_0" } as const;

export const typeOption = new Option("--type <name>", "type of the weights; norms and routers stay float32")
  .choices(["f16", "q8_0", "q4_0"] as const)
  .default("q8_0" as const)
  .helpGroup(group);

export const preTokenizerOption = new Option(
  "--pre-tokenizer <name>",
  "llama.cpp's name for how the tokenizer splits text; default: by tokenizer.json",
).helpGroup(group);

export interface GgufRequest {
  readonly opened: OpenModel;
  /** Absolute path of the folder to write. */
  readonly out: string;
  readonly type: GgufFileType;
  readonly preTokenizer: string | undefined;
}

export async function exportGguf(request: GgufRequest, context: CliContext): Promise<void> {
  const { opened, out, type, preTokenizer } = request;
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  const summary = await writeGguf(opened.checkpoint, folderTarget(out), {
    type,
    name: opened.name,
    ...(preTokenizer !== undefined && { preTokenizer }),
    emitter,
    signal: context.signal,
  });
  context.out.settle();
  const file = join(out, summary.file);
  context.out.result({ format: "gguf", out, type, ...summary }, () =>
    formatFacts([
      ["wrote", `${context.shown(file)} (${formatBytes(summary.bytes)})`],
      ["architecture", summary.architecture],
      ["tensors", `${summary.tensors}, mostly ${type}`],
    ]),
  );
}

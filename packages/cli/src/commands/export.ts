import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { type AttentionPlan, CoppiceError } from "@coppice/core";
import type { CliContext } from "../context.js";
import { examples, outOption } from "../options.js";
import { chooseAttentionPlan } from "../work/attention-plan-file.js";
import { type OpenModel, openModel } from "../work/open-model.js";
import { checkAbsent, checkOutside } from "../work/write-checkpoint.js";
import { exportGguf, ggufTypes, preTokenizerOption, typeOption } from "./export/gguf.js";
import {
  attentionLengthOption,
  expertOutputsOption,
  exportOnnxFolder,
  maxFileOption,
  targetOption,
} from "./export/onnx.js";

/** What only one format has. */
const ownOptions = {
  onnx: [targetOption, expertOutputsOption, attentionLengthOption, maxFileOption],
  gguf: [typeOption, preTokenizerOption],
} as const;

export function exportCommand(context: CliContext): CommandUnknownOpts {
  return new Command("export")
    .description(
      "Writes a model in a format that other runtimes load, tokenizer included. A plan is applied first, with `coppice apply`. " +
        "The folder appears complete or not at all.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option(
        "--format <name>",
        "onnx: for ONNX Runtime and transformers.js, in Node and browsers; gguf: for llama.cpp and what builds on it",
      )
        .choices(["onnx", "gguf"] as const)
        .makeOptionMandatory(),
    )
    .option(
      "--attention <plan>",
      "attention plan that the graph keeps: heads with limited spans get caches of their own length; none: not even the checkpoint's own " +
        "plan, which is the default",
    )
    .addOption(targetOption)
    .addOption(expertOutputsOption)
    .addOption(attentionLengthOption)
    .addOption(maxFileOption)
    .addOption(typeOption)
    .addOption(preTokenizerOption)
    .addOption(outOption)
    .addHelpText(
      "after",
      examples(
        "coppice export ./model-small --format onnx --out ./model-onnx",
        "coppice export ./model --format onnx --attention attention.json --attention-length 8192 --out ./model-onnx",
        "coppice export ./model-small --format onnx --target webgpu --expert-outputs --out ./model-web",
        "coppice export ./model-small --format gguf --type q4_0 --out ./model-gguf",
      ),
    )
    .action(async (path, options, command) => {
      const others = ownOptions[options.format === "onnx" ? "gguf" : "onnx"];
      const foreign = others.find((option) => command.getOptionValueSource(option.attributeName()) === "cli");
      if (foreign) {
        throw new CoppiceError("COPPICE_USAGE", `${foreign.long} is no option of --format ${options.format}`);
      }
      await using opened = await openModel(path, context);
      const out = context.path(options.out);
      checkOutside(out, opened.path);
      checkAbsent(out);
      const cannot =
        options.format === "gguf"
          ? "GGUF files"
          : options.target === "webgpu"
            ? "graphs for webgpu"
            : undefined;
      const attention = await exportedAttention(opened, options.attention, cannot, context);
      switch (options.format) {
        case "onnx": {
          const { target, expertOutputs, attentionLength, maxFileSize } = options;
          if (attentionLength !== undefined && !attention) {
            throw new CoppiceError(
              "COPPICE_USAGE",
              "--attention-length is for an attention plan, and none is exported",
            );
          }
          return await exportOnnxFolder(
            { opened, out, target, expertOutputs, attention, attentionLength, maxFileBytes: maxFileSize },
            context,
          );
        }
        case "gguf":
          return await exportGguf(
            { opened, out, type: ggufTypes[options.type], preTokenizer: options.preTokenizer },
            context,
          );
      }
    });
}

/**
 * The attention plan that is exported: what the user says, or else what the checkpoint brings along.
 * @param cannot what carries no plan: one that the user names is refused, one that the checkpoint brings is left out with a warning
 */
async function exportedAttention(
  opened: OpenModel,
  given: string | undefined,
  cannot: string | undefined,
  context: CliContext,
): Promise<AttentionPlan | undefined> {
  const plan = await chooseAttentionPlan(opened, given, context);
  if (!plan || cannot === undefined) return plan;
  const reason = `${cannot} carry no attention plan: what is written sees all that the model does`;
  if (given !== undefined) {
    throw new CoppiceError("COPPICE_EXPORT_UNSUPPORTED", reason, {
      hint: "export with --format onnx --target cpu or wasm, or with --attention none",
    });
  }
  context.out.warn(`the checkpoint brings an attention plan, and ${reason}`);
  return undefined;
}

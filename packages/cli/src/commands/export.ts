import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { CoppiceError } from "@coppice/core";
import type { CliContext } from "../context.js";
import { examples, outOption } from "../options.js";
import { openModel } from "../work/open-model.js";
import { checkAbsent, checkOutside } from "../work/write-checkpoint.js";
import { exportGguf, ggufTypes, preTokenizerOption, typeOption } from "./export/gguf.js";
import { expertOutputsOption, exportOnnxFolder, maxFileOption, targetOption } from "./export/onnx.js";

/** What only one format has. */
const ownOptions = {
  onnx: [targetOption, expertOutputsOption, maxFileOption],
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
    .addOption(targetOption)
    .addOption(expertOutputsOption)
    .addOption(maxFileOption)
    .addOption(typeOption)
    .addOption(preTokenizerOption)
    .addOption(outOption)
    .addHelpText(
      "after",
      examples(
        "coppice export ./model-small --format onnx --out ./model-onnx",
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
      if (opened.checkpoint.attention) {
        context.out.warn(
          `the checkpoint brings an attention plan, which ${options.format.toUpperCase()} files do not carry: what is written sees all that the model does`,
        );
      }
      switch (options.format) {
        case "onnx": {
          const { target, expertOutputs, maxFileSize } = options;
          return await exportOnnxFolder(
            { opened, out, target, expertOutputs, maxFileBytes: maxFileSize },
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

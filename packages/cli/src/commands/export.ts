import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import type { CliContext } from "../context.js";
import { examples, outOption } from "../options.js";
import { openModel } from "../work/open-model.js";
import { checkAbsent, checkOutside } from "../work/write-checkpoint.js";
import { exportGguf, ggufTypes, preTokenizerOption, typeOption } from "./export/gguf.js";

export function exportCommand(context: CliContext): CommandUnknownOpts {
  return new Command("export")
    .description(
      "Writes a model in a format that other runtimes load, tokenizer included. A plan is applied first, with `coppice apply`. " +
        "The folder appears complete or not at all.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option("--format <name>", "gguf: for llama.cpp and what builds on it")
        .choices(["gguf"] as const)
        .makeOptionMandatory(),
    )
    .addOption(typeOption)
    .addOption(preTokenizerOption)
    .addOption(outOption)
    .addHelpText(
      "after",
      examples("coppice export ./model-small --format gguf --type q4_0 --out ./model-gguf"),
    )
    .action(async (path, options) => {
      await using opened = await openModel(path, context);
      const out = context.path(options.out);
      checkOutside(out, opened.path);
      checkAbsent(out);
      switch (options.format) {
        case "gguf":
          return exportGguf(
            { opened, out, type: ggufTypes[options.type], preTokenizer: options.preTokenizer },
            context,
          );
      }
    });
}

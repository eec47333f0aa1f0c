import { Command, type CommandUnknownOpts, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { folderTarget } from "@coppice/checkpoint/node";
import { type QuantizedBits, quantizedBits, quantizedGroups, RunEmitter } from "@coppice/core";
import { quantizeCheckpoint, uniformFormat } from "@coppice/quantizers";
import type { CliContext } from "../context.js";
import { examples, maxShardOption, outOption, settings } from "../options.js";
import { loadPlugin } from "../plugins/find-plugin.js";
import { describeQuantized, quantizedResult } from "../terminal/quantized.js";
import { openModel } from "../work/open-model.js";
import { checkAbsent, checkOutside } from "../work/write-checkpoint.js";

export function quantizeCommand(context: CliContext): CommandUnknownOpts {
  return new Command("quantize")
    .description(
      "Writes the checkpoint with its matrices as integers of few bits, in the layout of compressed-tensors. Every other " +
        "command reads it like any checkpoint, and `coppice export` hands its codes to ONNX Runtime as they are.",
    )
    .argument("<model>", "checkpoint folder")
    .addOption(bitsOption("--bits <n>", "bits of every weight in the layers").default(4 as QuantizedBits))
    .addOption(
      new Option("--group <n>", `neighbouring weights that share a scale: ${quantizedGroups.join(", ")}`)
        .argParser(oneOf(quantizedGroups))
        .default(32),
    )
    .addOption(new Option("--asymmetric", "store a zero point with every scale"))
    .addOption(bitsOption("--head-bits <n>", "bits of the head; default: it stays as it is"))
    .addOption(bitsOption("--embedding-bits <n>", "bits of the embedding; default: it stays as it is"))
    .addOption(new Option("--method <name>", "quantizer plugin: rtn, hqq, gptq, awq").default("rtn"))
    .addOption(new Option("--set <key=value>", "option of the method; repeatable").argParser(settings))
    .addOption(outOption)
    .addOption(maxShardOption)
    .addHelpText(
      "after",
      examples(
        "coppice quantize ./model --bits 4 --group 32 --out ./model-q4",
        "coppice quantize ./model --bits 8 --method hqq --asymmetric --out ./model-q8",
        "coppice quantize ./model --bits 2 --group 16 --head-bits 8 --embedding-bits 8 --out ./model-q2",
      ),
    )
    .action(async (path, options) => {
      const started = performance.now();
      const { bits, group: groupSize, method, headBits: head, embeddingBits: embedding } = options;
      const out = context.path(options.out);
      checkAbsent(out);
      await using opened = await openModel(path, context);
      checkOutside(out, opened.path);
      const { plugin } = await loadPlugin("quantizer", method, context.io.cwd);
      const quantizer = await plugin.create(options.set ?? {}, undefined);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      const summary = await quantizeCheckpoint(opened.checkpoint, folderTarget(out), {
        quantizer,
        format: uniformFormat({
          bits,
          groupSize,
          symmetric: !options.asymmetric,
          ...(head !== undefined && { head }),
          ...(embedding !== undefined && { embedding }),
        }),
        emitter,
        signal: context.signal,
        ...(options.maxShardSize !== undefined && { maxShardBytes: options.maxShardSize }),
      });
      context.out.settle();
      const result = quantizedResult(opened.checkpoint, summary, {
        out,
        method,
        seconds: (performance.now() - started) / 1000,
      });
      context.out.result({ ...result }, () => describeQuantized(result));
    });
}

function bitsOption<F extends string>(flags: F, description: string) {
  return new Option(flags, description).argParser(oneOf(quantizedBits));
}

/** Parses one of these numbers. */
function oneOf<N extends number>(known: readonly N[]): (text: string) => N {
  return (text) => {
    const found = known.find((value) => String(value) === text.trim());
    if (found === undefined) throw new InvalidArgumentError(`expected one of ${known.join(", ")}.`);
    return found;
  };
}

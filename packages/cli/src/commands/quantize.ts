import { Command, type CommandUnknownOpts, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { folderTarget } from "@coppice/checkpoint/node";
import { CoppiceError, type QuantizedBits, quantizedBits, quantizedGroups, RunEmitter } from "@coppice/core";
import { writeFileAtomic } from "@coppice/core/node";
import { quantizeCheckpoint, uniformFormat } from "@coppice/quantizers";
import type { CliContext } from "../context.js";
import {
  backendOption,
  backendSetOption,
  byteCount,
  examples,
  list,
  maxShardOption,
  numberIn,
  outOption,
  seedOption,
  settings,
  wholeNumber,
} from "../options.js";
import { loadPlugin } from "../plugins/find-plugin.js";
import { describeQuantized, quantizedResult } from "../terminal/quantized.js";
import { chooseWidths, chosenFormat, droppingPlan, type WidthOptions } from "../work/choose-widths.js";
import { openModel } from "../work/open-model.js";
import { readCalibration } from "../work/quantizer-data.js";
import { withoutExperts } from "../work/without-experts.js";
import { checkAbsent, checkFileAbsent, checkOutside } from "../work/write-checkpoint.js";

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
    .addOption(
      new Option(
        "--average-bits <n>",
        "instead of --bits: choose the bits of every matrix so that the predictions on --data lose least, with so many bits per weight on average",
      )
        .argParser(numberIn(0, 8))
        .conflicts("bits"),
    )
    .addOption(
      new Option("--bytes <size>", "the same, with weights that take at most so much together, such as 10MB")
        .argParser(byteCount)
        .conflicts("bits"),
    )
    .addOption(
      new Option("--widths <list>", "bits to choose from; 0 drops experts, as many in every layer")
        .argParser(widths)
        .default([2, 4, 8] satisfies (QuantizedBits | 0)[], "2,4,8"),
    )
    .addOption(
      new Option("--mixed", "let matrices of one expert have different bits; takes longer to measure"),
    )
    .addOption(
      bitsOption("--least-bits <n>", "fewest bits of what is no expert: attention, embedding, head").default(
        4 as QuantizedBits,
      ),
    )
    .addOption(
      new Option(
        "--preset <name>",
        "mc-moe: choose by the program of MC-MoE, with --average-bits for the experts of every layer and --least-bits for all else",
      ).choices(["mc-moe"] as const),
    )
    .addOption(
      new Option(
        "--data <file>",
        "task file or text: what gptq and awq learn from, and on which is measured what fewer bits lose",
      ),
    )
    .addOption(new Option("--limit <n>", "only the first n samples of --data").argParser(wholeNumber(1)))
    .addOption(
      new Option("--sensitivity <file>", "what an earlier --plan-out wrote: choose again without measuring"),
    )
    .addOption(new Option("--plan-out <file>", "write the choice, and what it goes by, as JSON"))
    .addOption(
      new Option(
        "--head-bits <n>",
        "bits of the head, or keep: it stays as it is; default with --bits: 8",
      ).argParser(oneOf([...quantizedBits, "keep"] as const)),
    )
    .addOption(
      bitsOption(
        "--embedding-bits <n>",
        "bits of the embedding; default with --bits: it stays as it is, unless it is the head as well",
      ),
    )
    .addOption(new Option("--method <name>", "quantizer plugin: rtn, hqq, gptq, awq").default("rtn"))
    .addOption(new Option("--set <key=value>", "option of the method; repeatable").argParser(settings))
    .addOption(
      new Option("--rotate", "spread outlying channels over all by a rotation, which changes nothing else"),
    )
    .option("--chat", "put prompts into the checkpoint's chat template")
    .addOption(seedOption)
    .addOption(outOption)
    .addOption(maxShardOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addHelpText(
      "after",
      examples(
        "coppice quantize ./model --bits 4 --group 32 --out ./model-q4",
        "coppice quantize ./model --bits 4 --method gptq --data task.jsonl --out ./model-q4",
        "coppice quantize ./model --bits 8 --method hqq --asymmetric --out ./model-q8",
        "coppice quantize ./model --bits 2 --group 16 --embedding-bits 8 --out ./model-q2",
        "coppice quantize ./model --average-bits 3 --data task.jsonl --plan-out widths.json --out ./model-q3",
        "coppice quantize ./model --bytes 10MB --widths 0,2,4,8 --sensitivity widths.json --out ./model-10mb",
      ),
    )
    .action(async (path, options) => {
      const started = performance.now();
      const { bits, group: groupSize, method, headBits: head, embeddingBits: embedding } = options;
      const out = context.path(options.out);
      checkAbsent(out);
      const planOut = checkChoiceOptions(options, context);
      await using opened = await openModel(path, context);
      checkOutside(out, opened.path);
      const { plugin } = await loadPlugin("quantizer", method, context.io.cwd);
      const quantizer = await plugin.create(options.set ?? {}, undefined);
      const choice = isChoice(options) ? await chooseWidths(opened, quantizer, options, context) : undefined;
      if (planOut !== undefined && choice) await writeFileAtomic(planOut, `${JSON.stringify(choice)}\n`);
      const plan = choice && droppingPlan(opened.checkpoint.model, choice);
      await using pruned = plan ? await withoutExperts(opened, plan, out, context) : undefined;
      const source = pruned ?? opened;
      const measures = choice !== undefined && options.sensitivity === undefined;
      const calibration = await readCalibration(source, quantizer, { ...options, measures }, context);
      const emitter = new RunEmitter();
      context.out.follow(emitter);
      const uniform = { bits, groupSize, symmetric: !options.asymmetric };
      const summary = await quantizeCheckpoint(source.checkpoint, folderTarget(out), {
        quantizer,
        format: choice
          ? chosenFormat(choice, options)
          : uniformFormat({
              ...uniform,
              ...(head !== undefined && { head }),
              ...(embedding !== undefined && { embedding }),
            }),
        emitter,
        signal: context.signal,
        ...(calibration && { calibration }),
        ...(options.rotate && { rotate: options.seed }),
        ...(options.maxShardSize !== undefined && { maxShardBytes: options.maxShardSize }),
      });
      context.out.settle();
      const result = quantizedResult(opened.checkpoint, summary, {
        out,
        method,
        seconds: (performance.now() - started) / 1000,
        ...(choice && { choice }),
      });
      context.out.result({ ...result }, () => describeQuantized(result));
    });
}

function bitsOption<F extends string>(flags: F, description: string) {
  return new Option(flags, description).argParser(oneOf(quantizedBits));
}

/** Whether widths are to be chosen. */
function isChoice({ averageBits, bytes }: Pick<WidthOptions, "averageBits" | "bytes">): boolean {
  return averageBits !== undefined || bytes !== undefined;
}

/** Refuses what does not go together. @returns the path of --plan-out */
function checkChoiceOptions(
  options: Pick<WidthOptions, "averageBits" | "bytes" | "preset" | "sensitivity" | "data"> & {
    readonly planOut?: string;
  },
  context: CliContext,
): string | undefined {
  const { averageBits, bytes, preset, sensitivity, planOut } = options;
  if (averageBits !== undefined && bytes !== undefined) {
    throw new CoppiceError("COPPICE_USAGE", "give either --average-bits or --bytes");
  }
  const without = Object.entries({ "--preset": preset, "--sensitivity": sensitivity, "--plan-out": planOut });
  const [lone] = without.find(([, value]) => value !== undefined) ?? [];
  if (lone && !isChoice(options)) {
    throw new CoppiceError("COPPICE_USAGE", `${lone} needs --average-bits or --bytes`);
  }
  if (planOut === undefined) return undefined;
  const file = context.path(planOut);
  checkFileAbsent(file);
  return file;
}

/** Parses widths to choose from, ascending. */
function widths(text: string): (QuantizedBits | 0)[] {
  const found = list(text).map(oneOf([0, ...quantizedBits] as const));
  if (found.some((bits) => bits > 0)) return [...new Set(found)].sort((a, b) => a - b);
  throw new InvalidArgumentError(`expected one or more of ${quantizedBits.join(", ")}, and 0 besides.`);
}

/** Parses one of these numbers or words. */
function oneOf<N extends number | string>(known: readonly N[]): (text: string) => N {
  return (text) => {
    const found = known.find((value) => String(value) === text.trim());
    if (found === undefined) throw new InvalidArgumentError(`expected one of ${known.join(", ")}.`);
    return found;
  };
}

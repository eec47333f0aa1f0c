import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { type AttentionPlan, spanDensity } from "@coppice/core";
import { writeFileAtomic } from "@coppice/core/node";
import { renderAttention } from "@coppice/report";
import type { CliContext } from "../../context.js";
import { examples, wholeNumber } from "../../options.js";
import { attentionPicture, attentionSummary, headDensities } from "../../terminal/attention-plan.js";
import { readAttentionPlan } from "../../work/attention-plan-file.js";
import { openModel } from "../../work/open-model.js";
import { checkFileAbsent } from "../../work/write-checkpoint.js";

export function showCommand(context: CliContext): CommandUnknownOpts {
  return new Command("show")
    .summary("show a plan, head by head")
    .description(
      "Shows how far back every head looks under an attention plan, how the plan's predicted losses compare with measured " +
        "ones, and what it does to predictions by position.",
    )
    .argument("<plan>", "attention plan")
    .requiredOption("--model <folder>", "checkpoint that the plan is for")
    .addOption(
      new Option("--length <n>", "context length; default: the longest that the plan was made for").argParser(
        wholeNumber(1),
      ),
    )
    .option("--html <file>", "write the picture and all numbers as a page")
    .addHelpText(
      "after",
      examples(
        "coppice attention show attention.json --model ./model",
        "coppice attention show attention.json --model ./model --length 2048 --html attention.html",
      ),
    )
    .action(async (path, options) => {
      const html = options.html === undefined ? undefined : context.path(options.html);
      if (html !== undefined) checkFileAbsent(html);
      await using opened = await openModel(options.model, context, { headersOnly: true });
      const { model } = opened.checkpoint;
      const plan = await readAttentionPlan(path, model, context);
      const lengths = options.length === undefined ? madeFor(plan, model.contextLength) : [options.length];
      const shown = lengths.map((length) => ({
        length,
        density: spanDensity(plan, length),
        heads: headDensities(plan, length),
      }));
      if (html !== undefined) await writeFileAtomic(html, renderAttention({ plan, lengths: shown }));
      context.out.result({ plan, lengths: shown, ...(html !== undefined && { html }) }, () =>
        [
          ...lengths.map((length) => attentionPicture(plan, length)),
          attentionSummary(plan, lengths),
          ...(html === undefined ? [] : [`Wrote ${context.shown(html)}.`]),
        ].join("\n\n"),
      );
    });
}

function madeFor({ report }: AttentionPlan, contextLength: number): number[] {
  const lengths = report?.["lengths"];
  const usable = Array.isArray(lengths) ? lengths.filter((n) => Number.isSafeInteger(n) && n > 0) : [];
  return usable.length > 0 ? (usable as number[]) : [contextLength];
}

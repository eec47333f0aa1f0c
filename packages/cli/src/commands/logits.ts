import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { CoppiceError, type MoeModel } from "@coppice/core";
import { formatScore } from "@coppice/report";
import type { CliContext } from "../context.js";
import {
  attentionPlanOption,
  backendOption,
  backendSetOption,
  examples,
  planOption,
  tokenIds,
  workersOption,
} from "../options.js";
import { formatTable } from "../terminal/format.js";
import { chooseAttentionPlan } from "../work/attention-plan-file.js";
import { openPool } from "../work/model-pool.js";
import { openModel } from "../work/open-model.js";
import { readPlan } from "../work/plan-file.js";

/** Largest logits shown to people; programs get all. */
const shownTokens = 5;

export function logitsCommand(context: CliContext): CommandUnknownOpts {
  return new Command("logits")
    .description("Computes logits of token sequences, to compare with other runtimes.")
    .argument("<model>", "checkpoint folder")
    .addOption(
      new Option("--ids <ids>", "token ids of a sequence, 1,2,3; repeatable")
        .argParser(tokenIds)
        .makeOptionMandatory(),
    )
    .option("--all", "logits of every position, not the last one only")
    .addOption(planOption)
    .addOption(attentionPlanOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice logits ./model --ids 1,2,3 --json",
        "coppice logits ./model --ids 1,2,3 --ids 4,5 --all --json",
      ),
    )
    .action(async (path, options) => {
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      for (const ids of options.ids) checkSequence(ids, model);
      const plan = options.plan === undefined ? undefined : await readPlan(options.plan, model, context);
      const attention = await chooseAttentionPlan(opened, options.attention, context);
      await using pool = await openPool(opened, options, context);
      const all = options.all ?? false;
      const rows = await pool.logits(options.ids, {
        all,
        signal: context.signal,
        ...(plan && { plan }),
        ...(attention && { attention }),
      });
      const logits = all ? rows : rows.map((positions) => positions[0]);
      context.out.result({ logits }, () =>
        formatTable(
          ["sequence", "position", "most likely tokens (logit)"],
          rows.flatMap((positions, sequence) =>
            positions.map((row, i) => {
              const length = options.ids[sequence]?.length ?? 0;
              return [String(sequence), String(length - positions.length + i), topTokens(row)];
            }),
          ),
          [0, 1],
        ),
      );
    });
}

function topTokens(row: Float32Array): string {
  return Array.from(row, (value, token) => ({ value, token }))
    .sort((a, b) => b.value - a.value)
    .slice(0, shownTokens)
    .map(({ value, token }) => `${token} (${formatScore(value)})`)
    .join("  ");
}

/** @throws COPPICE_USAGE, COPPICE_TASK_TOO_LONG */
export function checkSequence(ids: Int32Array, model: MoeModel): void {
  const outside = ids.find((id) => id >= model.vocabSize);
  if (outside !== undefined) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `token id ${outside} is outside the model's vocabulary, 0 to ${model.vocabSize - 1}`,
    );
  }
  if (ids.length > model.contextLength) {
    throw new CoppiceError(
      "COPPICE_TASK_TOO_LONG",
      `a sequence has ${ids.length} tokens, the model's context is ${model.contextLength}`,
    );
  }
}

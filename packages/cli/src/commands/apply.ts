import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { CoppiceError, createPlan } from "@coppice/core";
import { projectToStock } from "@coppice/search-eep";
import type { CliContext } from "../context.js";
import { dryRunOption, examples, maxShardOption, outOption } from "../options.js";
import { shownPlan } from "../terminal/shown-plan.js";
import { readAttentionPlan } from "../work/attention-plan-file.js";
import { openModel } from "../work/open-model.js";
import { readPlan } from "../work/plan-file.js";
import { describeWritten, writeCheckpoint } from "../work/write-checkpoint.js";

export function applyCommand(context: CliContext): CommandUnknownOpts {
  return new Command("apply")
    .description(
      "Writes the checkpoint that a plan describes: an ordinary checkpoint of its family with fewer experts, or with an " +
        "attention plan. The folder appears complete or not at all.",
    )
    .argument("<model>", "checkpoint folder that the plan was made for")
    .option("--plan <file>", "plan.json of a search, or any plan")
    .option(
      "--attention <file>",
      "attention plan that the checkpoint brings along from then on; alone: all experts stay",
    )
    .addOption(
      new Option(
        "--project-router",
        "replace router maps, which no stock checkpoint can hold, by the nearest stock router",
      ),
    )
    .addOption(
      new Option(
        "--layout <name>",
        "stock: what every runtime of the family loads; runtime: also different numbers of experts per layer and skip rules, which coppice alone knows",
      )
        .choices(["stock", "runtime"] as const)
        .default("stock" as const),
    )
    .addOption(outOption)
    .addOption(dryRunOption)
    .addOption(maxShardOption)
    .addHelpText(
      "after",
      examples(
        "coppice apply ./model --plan run/plan.json --out ./model-small",
        "coppice apply ./model --plan run/plan.json --out ./model-small --dry-run --json",
        "coppice apply ./model --plan uneven.json --layout runtime --out ./model-uneven",
        "coppice apply ./model --attention attention.json --out ./model-sparse",
      ),
    )
    .action(async (path, options) => {
      if (options.plan === undefined && options.attention === undefined) {
        throw new CoppiceError("COPPICE_USAGE", "give --plan <file>, --attention <file> or both");
      }
      await using opened = await openModel(path, context);
      const { model } = opened.checkpoint;
      const attention =
        options.attention === undefined
          ? undefined
          : await readAttentionPlan(options.attention, model, context);
      const given =
        options.plan === undefined ? createPlan(model) : await readPlan(options.plan, model, context);
      const plan = options.projectRouter ? projectToStock(given) : given;
      const written = await writeCheckpoint(
        {
          opened,
          plan,
          out: context.path(options.out),
          dryRun: options.dryRun,
          maxShardBytes: options.maxShardSize,
          layout: options.layout,
          attention,
          metadata: { command: "apply" },
        },
        context,
      );
      context.out.result({ ...written, ...shownPlan(plan) }, () => describeWritten(written));
    });
}

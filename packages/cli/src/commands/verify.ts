import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { compareTensors, readProvenance, verifyTolerance } from "@coppice/checkpoint";
import { CoppiceError, checkRecord, createPlan, type Plan, parsePlan, RunEmitter } from "@coppice/core";
import { formatBytes } from "@coppice/report";
import type { CliContext } from "../context.js";
import { backendOption, backendSetOption, examples, numberIn, seedOption } from "../options.js";
import { formatFacts } from "../terminal/format.js";
import { type OpenModel, openModel } from "../work/open-model.js";
import { readPlan } from "../work/plan-file.js";
import { readTask } from "../work/task-file.js";
import { verifyModels } from "../work/verify-models.js";

export function verifyCommand(context: CliContext): CommandUnknownOpts {
  return new Command("verify")
    .description(
      "Runs the original under a plan and the written checkpoint as it is, on the same token sequences, and compares " +
        "the logits of every position. With --tensors, and for models that can only be edited, the files are compared " +
        "tensor by tensor instead. Ends with code 1 when something differs.",
    )
    .argument("<model>", "original checkpoint folder")
    .argument("<other>", "checkpoint folder that was written from it")
    .option(
      "--plan <file>",
      "plan for the original; default: the one in <other>/coppice.json, which has only hashes of fitted projections and of " +
        "new router rows",
    )
    .option("--task <file>", "compare on prompts of this task too")
    .option("--tensors", "compare every tensor with what the plan makes of it; nothing is run")
    .addOption(
      new Option(
        "--tolerance <x>",
        "largest difference that counts as equal; default: that of the family",
      ).argParser(numberIn(0, Number.POSITIVE_INFINITY)),
    )
    .addOption(seedOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addHelpText(
      "after",
      examples(
        "coppice verify ./model ./small",
        "coppice verify ./model ./small --plan run/plan.json --task dev.jsonl --json",
        "coppice verify ./model ./small --tensors",
      ),
    )
    .action(async (path, otherPath, options) => {
      await using original = await openModel(path, context);
      await using other = await openModel(otherPath, context);
      const plan =
        options.plan === undefined
          ? await planOf(other, original, context)
          : await appliedPlan(options.plan, other, original, context);
      if (options.tensors || original.checkpoint.model.editOnly !== undefined) {
        await verifyTensors(original, other, plan, context);
        return;
      }
      const task = options.task === undefined ? undefined : await readTask(options.task, context);
      const { family } = original.checkpoint.detected;
      const promise = verifyTolerance(family);
      const tolerance = options.tolerance ?? promise?.tolerance ?? 0;
      const result = await verifyModels(
        { original, other, plan, task, seed: options.seed, tolerance },
        options,
        context,
      );
      context.out.settle();
      if (!result.equal) context.exitCode = 1;
      context.out.result({ ...result, tolerance, plan: plan !== undefined }, () =>
        formatFacts([
          [
            result.equal ? "equal" : "DIFFERENT",
            `largest difference ${result.maxAbsDiff.toExponential(2)}, tolerance ${tolerance}`,
          ],
          [
            "compared",
            `${result.positions} positions of ${result.sequences} sequences, ${original.checkpoint.model.vocabSize} logits each`,
          ],
          ["original", plan ? "under the plan" : "as it is"],
          ...(promise && result.equal && result.maxAbsDiff > 0
            ? [["why not 0", promise.reason] as const]
            : []),
          ["of this family", family.notes.exact],
        ]),
      );
    });
}

async function verifyTensors(
  original: OpenModel,
  other: OpenModel,
  plan: Plan | undefined,
  context: CliContext,
): Promise<void> {
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  const { checkpoint } = original;
  const found = await compareTensors(checkpoint, plan ?? createPlan(checkpoint.model), other.checkpoint, {
    emitter,
    signal: context.signal,
  });
  context.out.settle();
  if (!found.equal) context.exitCode = 1;
  const { equal, tensors, bytes, differences } = found;
  context.out.result({ equal, tensors, bytes, differences, plan: plan !== undefined }, () =>
    formatFacts([
      [
        equal ? "equal" : "DIFFERENT",
        `${tensors} tensors, ${formatBytes(bytes)}, compared without running the model`,
      ],
      ...differences.map((difference) => ["differs", difference] as const),
      ["original", plan ? "under the plan" : "as it is"],
    ]),
  );
}

/** The plan of a file, which must be the one that `other` was made with, as far as it says that. */
async function appliedPlan(
  path: string,
  other: OpenModel,
  original: OpenModel,
  context: CliContext,
): Promise<Plan> {
  const plan = await readPlan(path, original.checkpoint.model, context);
  const provenance = await readProvenance(other.checkpoint.folder, { signal: context.signal });
  checkRecord(provenance?.plan, plan);
  return plan;
}

/** The plan that `other` says it was made with. */
async function planOf(other: OpenModel, original: OpenModel, context: CliContext): Promise<Plan | undefined> {
  const provenance = await readProvenance(other.checkpoint.folder, { signal: context.signal });
  if (provenance) return parsePlan(provenance.plan, original.checkpoint.model);
  const { model } = original.checkpoint;
  if (model.fingerprint === other.checkpoint.model.fingerprint) return undefined;
  throw new CoppiceError("COPPICE_USAGE", `${other.path} has no coppice.json, so its plan is not known`, {
    hint: "give the plan with --plan",
  });
}

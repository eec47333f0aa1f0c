import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import type { CliContext } from "../context.js";
import { buildCommand } from "./profile/build.js";
import { generateCommand } from "./profile/generate.js";
import { pickCommand } from "./profile/pick.js";
import { planCommand } from "./profile/plan.js";
import { listCommand, mergeCommand, removeCommand } from "./profile/stores.js";

export function profileCommand(context: CliContext): CommandUnknownOpts {
  return new Command("profile")
    .description(
      "Keeps, per task, the experts in the order in which the task needs them, in one small file over one checkpoint. " +
        "The profile of a prompt is found by what the first router says of it, and only its experts are loaded.",
    )
    .addCommand(buildCommand(context))
    .addCommand(listCommand(context))
    .addCommand(mergeCommand(context))
    .addCommand(removeCommand(context))
    .addCommand(pickCommand(context))
    .addCommand(planCommand(context))
    .addCommand(generateCommand(context));
}

import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import type { CliContext } from "../context.js";
import { planCommand } from "./attention/plan.js";
import { showCommand } from "./attention/show.js";

export function attentionCommand(context: CliContext): CommandUnknownOpts {
  return new Command("attention")
    .description(
      "Decides how far back every head looks, so that long contexts take less memory and time, and shows such plans.",
    )
    .addCommand(planCommand(context))
    .addCommand(showCommand(context));
}

import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import type { CliContext } from "../context.js";
import { planCommand } from "./trace/plan.js";
import { recordCommand } from "./trace/record.js";
import { simulateCommand } from "./trace/simulate.js";

export function traceCommand(context: CliContext): CommandUnknownOpts {
  return new Command("trace")
    .description(
      "Records which experts every token runs, replays that against caches that hold some of the experts, and says for " +
        "a budget of memory whether to drop experts, to load them when they are needed, or both.",
    )
    .addCommand(recordCommand(context))
    .addCommand(simulateCommand(context))
    .addCommand(planCommand(context));
}

import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import type { CliContext } from "../context.js";
import { expertsCommand } from "./allocate/experts.js";
import { skipCommand } from "./allocate/skip.js";
import { topKCommand } from "./allocate/top-k.js";

export function allocateCommand(context: CliContext): CommandUnknownOpts {
  return new Command("allocate")
    .description(
      "Decides how a budget is shared out over layers, exactly where costs of layers add up: experts per layer, top-k per " +
        "layer, or how often a layer skips experts. Writes a plan.",
    )
    .addCommand(expertsCommand(context))
    .addCommand(topKCommand(context))
    .addCommand(skipCommand(context));
}

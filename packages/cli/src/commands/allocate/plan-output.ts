import { Option } from "@commander-js/extra-typings";
import { familyPaddingObstacle, type OutputLayout } from "@coppice/checkpoint";
import { CoppiceError } from "@coppice/core";
import type { OpenModel } from "../../work/open-model.js";

export const planOutOption = new Option("--out <file>", "plan file to write").makeOptionMandatory();

export const layoutOption = new Option(
  "--layout <name>",
  "layout that the plan is to be written in later: stock, or runtime, which coppice loads",
)
  .choices(["stock", "runtime"] as const)
  .default("stock" as const);

/**
 * Refuses layers of different numbers of experts where the stock layout cannot have them, before any work.
 * @throws COPPICE_PLAN_EXPORT
 */
export function checkUnevenFits({ checkpoint }: OpenModel, layout: OutputLayout, what: string): void {
  const { family } = checkpoint.detected;
  const obstacle = layout === "stock" ? familyPaddingObstacle(family) : undefined;
  if (obstacle === undefined) return;
  throw new CoppiceError(
    "COPPICE_PLAN_EXPORT",
    `stock checkpoints of ${checkpoint.model.family} cannot have different ${what} per layer: ${obstacle}`,
    { hint: "give --uniform, or --layout runtime for checkpoints that coppice loads" },
  );
}

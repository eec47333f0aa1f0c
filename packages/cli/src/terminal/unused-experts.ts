import type { UnusedExperts } from "@coppice/core";
import type { CliContext } from "../context.js";

/** Layers that a warning names; the others are counted. */
const named = 6;

/** Says which experts no token reached, if there are any: a criterion that reads statistics knows nothing of them. */
export function warnUnused(unused: readonly UnusedExperts[], context: CliContext): void {
  if (unused.length === 0) return;
  const count = unused.reduce((sum, { experts }) => sum + experts.length, 0);
  const rest = unused.length > named ? `; and ${unused.length - named} more layers` : "";
  context.out.warn(
    `no token of the data was routed to ${count} expert${count === 1 ? "" : "s"}, of which its statistics say nothing: ` +
      `${unused.slice(0, named).map(describeLayer).join("; ")}${rest}`,
  );
}

/** "layer 4: 1 7" */
function describeLayer({ layer, experts }: UnusedExperts): string {
  return `layer ${layer}: ${experts.join(" ")}`;
}

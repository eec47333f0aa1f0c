import { formatScore } from "@coppice/report";
import type { LongContextScores, PlaceScores } from "../work/long-context.js";
import { formatInterval, formatTable } from "./format.js";

/** Scores of a long-context evaluation, as tables. */
export function longContextText(scores: LongContextScores): string {
  if (scores.kind !== "positions") return placeTable(scores.places);
  return scores.windows
    .map(({ length, windows, positions, ...all }) =>
      formatTable(
        [`${length} tokens`, "perplexity at 95 %", "tokens"],
        [
          ...positions.map(({ from, to, tokens, ...part }) => [
            `${from} to ${to - 1}`,
            formatInterval(part),
            String(tokens),
          ]),
          ["all", formatInterval(all), `${windows} windows`],
        ],
        [0, 2],
      ),
    )
    .join("\n\n");
}

/** One row per length, one column per depth. */
function placeTable({ cells, lengths }: PlaceScores): string {
  const depths = [...new Set(cells.map(({ depth = 0 }) => depth))];
  const head = ["length", ...depths.map((depth) => `depth ${depth}`), "all depths at 95 %", "samples"];
  const rows = lengths.map((all) => [
    String(all.length),
    ...depths.map((at) => {
      const cell = cells.find(({ length, depth }) => length === all.length && depth === at);
      return cell ? formatScore(cell.value) : "-";
    }),
    formatInterval(all),
    String(all.samples),
  ]);
  return formatTable(
    head,
    rows,
    [...head.keys()].filter((i) => i !== head.length - 2),
  );
}

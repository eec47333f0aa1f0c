import type { DroppedPoint } from "@coppice/calibrate";
import type { ScoreCard } from "../work/score-card.js";
import { formatTable } from "./format.js";

/** Experts whose scores fit beside each other; with more of them their order is printed. */
const scoreColumns = 16;

/** Numbers of experts kept that fit beside each other. */
const keepColumns = 8;

export function scoreCardText(card: ScoreCard): string {
  return [scoreTable(card), correlationTable(card), ...droppedTables(card)]
    .filter((part) => part !== "")
    .join("\n\n");
}

/** One row per layer and criterion. */
function scoreTable({ layers, criteria }: ScoreCard): string {
  const experts = Math.max(0, ...criteria.flatMap(({ scores }) => scores.map(({ length }) => length)));
  const several = criteria.length > 1;
  const rows = layers.flatMap((layer, i) =>
    criteria.map(({ criterion, scores }, c) => {
      const row = scores[i] as Float64Array;
      return [
        ...(several ? [c === 0 ? String(layer) : "", criterion] : [String(layer)]),
        ...(experts > scoreColumns ? [ranking(row)] : Array.from(row, (score) => score.toPrecision(4))),
      ];
    }),
  );
  const left = several ? ["layer", "criterion"] : ["layer"];
  if (experts > scoreColumns) return formatTable([...left, "experts, the most important first"], rows, [0]);
  const head = [...left, ...Array.from({ length: experts }, (_, expert) => `expert ${expert}`)];
  return formatTable(
    head,
    rows,
    Array.from(head.keys()).filter((i) => i !== 1 || !several),
  );
}

function ranking(row: Float64Array): string {
  return Array.from(row.keys())
    .sort((a, b) => (row[b] as number) - (row[a] as number) || a - b)
    .join(" ");
}

/** Columns are numbered, because the names of all criteria would not fit beside each other. */
function correlationTable({ criteria, correlations }: ScoreCard): string {
  if (correlations.length === 0) return "";
  const names = criteria.map(({ criterion }) => criterion);
  const of = (a: string, b: string) =>
    correlations.find(({ criteria: pair }) => pair.includes(a) && pair.includes(b))?.mean;
  const cell = (a: string, b: string) => (a === b ? "1" : (of(a, b)?.toFixed(2) ?? "-"));
  return [
    "Rank correlation (Spearman), mean over layers",
    formatTable(
      ["", "", ...names.map((_, i) => String(i + 1))],
      names.map((name, i) => [String(i + 1), name, ...names.map((other) => cell(name, other))]),
      [0, ...names.map((_, i) => i + 2)],
    ),
  ].join("\n");
}

function droppedTables({ criteria, leastDropped }: ScoreCard): string[] {
  if (!leastDropped) return [];
  const keeps = spread(leastDropped.overall.map(({ keep }) => keep).slice(0, -1), keepColumns);
  const head = keeps.map((keep) => `keep ${keep}`);
  const right = keeps.map((_, i) => i + 1);
  const cells = (points: readonly DroppedPoint[]) =>
    keeps.map((keep) => {
      const dropped = points.find((point) => point.keep === keep)?.dropped;
      return dropped === undefined ? "-" : `${(100 * dropped).toFixed(1)} %`;
    });
  const rows = criteria.map(({ criterion, dropped }) => [criterion, ...cells(dropped?.overall ?? [])]);
  return [
    [
      "Router probability dropped, mean over layers",
      formatTable(
        ["criterion", ...head],
        [...rows, ["the least possible", ...cells(leastDropped.overall)]],
        right,
      ),
    ].join("\n"),
    [
      `Router probability dropped per layer, ${criteria.length === 1 ? criteria[0]?.criterion : "the least possible"}`,
      formatTable(
        ["layer", ...head],
        ((criteria.length === 1 ? criteria[0]?.dropped : undefined) ?? leastDropped).layers.map(
          ({ layer, points }) => [String(layer), ...cells(points)],
        ),
        [0, ...right],
      ),
    ].join("\n"),
  ];
}

/** At most `count` of the values, evenly spread, the first and the last among them. */
function spread(values: readonly number[], count: number): number[] {
  if (values.length <= count) return [...values];
  const at = (i: number) => Math.round((i * (values.length - 1)) / (count - 1));
  return Array.from({ length: count }, (_, i) => values[at(i)] as number);
}

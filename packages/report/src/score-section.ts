import { formatDifference, formatScore } from "./format.js";
import { type Html, html } from "./html.js";
import type { Estimate, ReportRow, ReportScores } from "./report-data.js";

/** Scores on a task with intervals, as a table and as a picture of the same numbers. */
export function scoreSection({ task, rows, metric, note }: ReportScores, index: number): Html {
  if (rows.length === 0) return html``;
  const withDifference = rows.some(({ difference }) => difference);
  const withGain = rows.some(({ gain }) => gain);
  const id = index === 0 ? "scores" : `scores-${index + 1}`;
  return html`<section aria-labelledby="${id}"><h2 id="${id}">${task === undefined ? "Scores" : `Scores: ${task}`}</h2>
<p class="soft">${metric}, with 95 % intervals. Search samples decided what to keep; holdout samples did not.${
    note === undefined ? undefined : ` ${note}`
  }</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="${id}"><table>
<thead><tr><th scope="col">Model</th><th scope="col" class="n">Search</th><th scope="col" class="n">Holdout</th>
${withDifference ? html`<th scope="col" class="n">Holdout, to the full model</th>` : undefined}
${withGain ? html`<th scope="col" class="n">Holdout, the chosen is better by</th>` : undefined}</tr></thead>
<tbody>${rows.map(
    (row) => html`<tr class="${row.role}"><th scope="row">${row.label}${
      row.note ? html`<small>${row.note}</small>` : undefined
    }</th>
${cell(row.search, formatScore)}${cell(row.holdout, formatScore)}${
  withDifference ? cell(row.difference, formatDifference) : undefined
}${withGain ? cell(row.gain, formatDifference) : undefined}</tr>
`,
  )}</tbody></table></div>
${plot(rows)}</section>`;
}

function cell(estimate: Estimate | undefined, format: (value: number) => string): Html {
  if (!estimate) return html`<td class="n">–</td>`;
  const { value, low, high, samples } = estimate;
  return html`<td class="n">${format(value)}<small>${format(low)} to ${format(high)}, n=${samples}</small></td>`;
}

/** The table says the same in words, so the picture is hidden from screen readers. */
function plot(rows: readonly ReportRow[]): Html {
  const estimates = rows.flatMap(({ search, holdout }) => [search, holdout].filter((e) => e !== undefined));
  if (estimates.length === 0) return html``;
  const { min, max } = domain(estimates);
  const at = (value: number) =>
    `${(100 * Math.min(1, Math.max(0, (value - min) / (max - min)))).toFixed(2)}%`;
  const mark = (estimate: Estimate | undefined, kind: "s" | "h") => {
    if (!estimate) return undefined;
    const width = `calc(${at(estimate.high)} - ${at(estimate.low)})`;
    return html`<i class="${kind}" style="left:${at(estimate.low)};width:${width}"></i><u class="${kind}" style="left:${at(
      estimate.value,
    )}"></u>`;
  };
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => min + share * (max - min));
  return html`<div class="plot" aria-hidden="true">${rows.map(
    (row) => html`<span class="name ${row.role}">${row.label}</span><div class="track">${mark(
      row.search,
      "s",
    )}${mark(row.holdout, "h")}</div>
`,
  )}<span class="gap"></span><div class="axis">${ticks.map(
    (tick) => html`<span style="left:${at(tick)}">${trim(tick)}</span>`,
  )}</div></div>
<ul class="legend" aria-hidden="true"><li><i class="ring"></i>search</li><li><i class="b0"></i>holdout</li></ul>`;
}

/** 0 to 1 for shares; otherwise what the intervals span. */
function domain(estimates: readonly Estimate[]): { min: number; max: number } {
  const values = estimates.flatMap(({ low, value, high }) => [low, value, high]).filter(Number.isFinite);
  const min = Math.min(...values);
  const max = Math.max(...values);
  if (min >= 0 && max <= 1) return { min: 0, max: 1 };
  const pad = (max - min || Math.abs(max) || 1) * 0.05;
  return { min: min - pad, max: max + pad };
}

function trim(value: number): string {
  return String(Number(value.toPrecision(3)));
}

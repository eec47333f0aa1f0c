import { formatBytes, formatCount, formatScore } from "./format.js";
import { type Html, html } from "./html.js";
import type { ReportData, ReportFront, ReportFrontPoint } from "./report-data.js";

/** Rows of a front that are shown; a longer one is thinned out evenly, the best of every objective staying. */
const mostRows = 100;

/** The plans of a search for several goals, as a table: which of them is best, only the reader can say. */
export function frontSection({ front }: ReportData): Html {
  if (!front || front.points.length === 0) return html``;
  const { objectives, points } = front;
  const rows = thinned(front);
  return html`<section aria-labelledby="front"><h2 id="front">Front</h2>
<p class="soft">${points.length} of the evaluated plans that none beats in every respect${
    rows.length < points.length ? html`; the table shows ${rows.length} of them` : ""
  }. Fitness is that on the search samples, which decided: it flatters every one of them.</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="front"><table><thead><tr><th scope="col">Experts per layer</th><th scope="col" class="n">top-k</th>${objectives.map(
    ({ name, better }) =>
      html`<th scope="col" class="n">${words(name)}<small>${better} is better</small></th>`,
  )}</tr></thead>
<tbody>${rows.map(
    (point) =>
      html`<tr class="${point.chosen ? "chosen" : ""}"><th scope="row">${counts(point.experts)}${
        point.chosen ? html`<small>the chosen plan</small>` : undefined
      }</th><td class="n">${counts(point.topK)}</td>${point.values.map(
        (value, i) => html`<td class="n">${formatted(objectives[i]?.name ?? "", value)}</td>`,
      )}</tr>
`,
  )}</tbody></table></div></section>`;
}

/** In ascending order of the first objective of which less is better. */
function thinned({ objectives, points }: ReportFront): readonly ReportFrontPoint[] {
  const by = Math.max(0, objectives.map(({ better }) => better).indexOf("lower"));
  const sorted = [...points].sort((a, b) => (a.values[by] ?? 0) - (b.values[by] ?? 0));
  if (sorted.length <= mostRows) return sorted;
  const ends = objectives.map(({ better }, i) =>
    sorted.reduce((a, b) => {
      const difference = (b.values[i] ?? 0) - (a.values[i] ?? 0);
      return (better === "higher" ? difference > 0 : difference < 0) ? b : a;
    }),
  );
  const room = mostRows - objectives.length - 1;
  const even = Array.from(
    { length: room },
    (_, i) => sorted[Math.round((i * (sorted.length - 1)) / (room - 1))],
  );
  const shown = new Set([...ends, ...even]);
  return sorted.filter((point) => point.chosen || shown.has(point));
}

/** 4 when all are equal, else each: 4, 3, 6. */
function counts(values: readonly number[]): string {
  return new Set(values).size === 1 ? String(values[0]) : values.join(", ");
}

/** activeParameters: active parameters. */
function words(name: string): string {
  return name.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
}

function formatted(name: string, value: number): string {
  if (name === "bytes") return formatBytes(value);
  return /parameters/i.test(name) ? formatCount(value) : formatScore(value);
}

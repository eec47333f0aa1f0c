import { formatScore } from "./format.js";
import { type Html, html } from "./html.js";
import type { ReportData, ReportEvaluation } from "./report-data.js";

/** Beyond this many points the picture gains nothing and the page grows; they are thinned evenly. */
const pointLimit = 4000;

/** Fitness of every candidate and the best so far. Drawn in a unit square that CSS stretches. */
export function progressSection({ evaluations, fitness }: ReportData): Html {
  const points = evaluations.filter((point) => Number.isFinite(point.fitness));
  if (points.length === 0) return html``;
  const label = ({ phase, probe }: ReportEvaluation) => (probe ? `${phase} (probes, no results)` : phase);
  const phases = [...new Set(points.map(label))];
  const results = points.filter(({ probe }) => !probe);
  const last = Math.max(...points.map(({ evaluation }) => evaluation));
  const values = points.map((point) => point.fitness);
  const { min, max, below } = range(values);
  const x = (evaluation: number) => ((1000 * (evaluation - 0.5)) / last).toFixed(1);
  const y = (value: number) => (1000 * (1 - Math.max(0, (value - min) / (max - min)))).toFixed(1);
  const shown = thin(points);
  const dots = phases.map((phase, i) => {
    const path = shown
      .filter((point) => label(point) === phase)
      .map((point) => `M${x(point.evaluation)} ${y(point.fitness)}h0`)
      .join("");
    return html`<path class="dot p${i % 4}" d="${path}"/>`;
  });
  const ticks = [1, 0.75, 0.5, 0.25, 0].map((share) => min + share * (max - min));
  const failed = evaluations.length - points.length;
  return html`<section aria-labelledby="progress"><h2 id="progress">Search</h2>
<p class="soft">${fitness} of each candidate on the search samples. ${
    results.length > 0
      ? `The best of ${results.length} candidates reached ${formatScore(largest(results.map((point) => point.fitness)))}.`
      : ""
  }${failed > 0 ? ` ${failed} could not be evaluated.` : ""}${
    below > 0 ? ` ${below} far below the others lie on the lower edge.` : ""
  }</p>
<div class="line" aria-hidden="true"><div class="y">${ticks.map((tick) => html`<span>${formatScore(tick)}</span>`)}</div>
<svg viewBox="0 0 1000 1000" preserveAspectRatio="none">${[0.25, 0.5, 0.75].map(
    (share) => html`<path class="grid" d="M0 ${1000 * share}H1000"/>`,
  )}${dots}<path class="best" d="${bestLine(results, x, y, last)}"/></svg>
<div class="x"><span>1</span><span>evaluations</span><span>${last}</span></div></div>
<ul class="legend">${phases.map((phase, i) => html`<li><i class="b${i % 4}"></i>${phase}</li>`)}<li><i class="bb"></i>best so far</li></ul>
</section>`;
}

function bestLine(
  points: readonly ReportEvaluation[],
  x: (evaluation: number) => string,
  y: (value: number) => string,
  last: number,
): string {
  let best = Number.NEGATIVE_INFINITY;
  let path = "";
  for (const { evaluation, fitness } of points) {
    if (!(fitness > best)) continue;
    best = fitness;
    path += path ? `H${x(evaluation)}V${y(best)}` : `M${x(evaluation)} ${y(best)}`;
  }
  return path ? `${path}H${x(last)}` : "";
}

/**
 * What the picture spans. A few plans that broke the model must not press all others into a line, so points far below
 * the lower decile stay on the lower edge.
 * @returns also how many those are
 */
function range(values: readonly number[]): { min: number; max: number; below: number } {
  const sorted = [...values].sort((a, b) => a - b);
  const [lowest, decile, top] = [0, 0.1, 1].map(
    (share) => sorted[Math.floor(share * (sorted.length - 1))] as number,
  ) as [number, number, number];
  const bottom = Math.max(lowest, decile - (top - decile));
  const pad = (top - bottom || Math.abs(top) || 1) * 0.04;
  return { min: bottom - pad, max: top + pad, below: sorted.filter((value) => value < bottom).length };
}

function largest(values: readonly number[]): number {
  return values.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
}

function thin(points: readonly ReportEvaluation[]): readonly ReportEvaluation[] {
  if (points.length <= pointLimit) return points;
  return Array.from(
    { length: pointLimit },
    (_, i) => points[Math.floor((i * points.length) / pointLimit)] as ReportEvaluation,
  );
}

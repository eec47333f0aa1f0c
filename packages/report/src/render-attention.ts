import type { AttentionPlan } from "@coppice/core";
import { formatScore } from "./format.js";
import { Html, type HtmlValue, html } from "./html.js";
import { style } from "./style.js";

/** Density of the heads of an attention plan at one context length. */
export interface AttentionLength {
  readonly length: number;
  /** Mean over all heads. */
  readonly density: number;
  /** [layers][kvHeads] */
  readonly heads: readonly (readonly number[])[];
}

export interface AttentionReport {
  readonly plan: AttentionPlan;
  readonly lengths: readonly AttentionLength[];
}

/** An attention plan as one HTML page: no script, no request, every text escaped. */
export function renderAttention({ plan, lengths }: AttentionReport): string {
  const { family, layers, kvHeads } = plan.model;
  const method = plan.report?.["method"];
  const title = `Attention plan${typeof method === "string" ? ` of ${method}` : ""}`;
  return html`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<style>${new Html(style)}</style></head>
<body><main>
<header><h1>${title}</h1><p>${family}, ${layers} layers of ${kvHeads} KV heads; ${plan.sinks} sinks, blocks of ${
    plan.blockSize
  } tokens.</p></header>
${lengths.map(densitySection)}
${decisionSection(records(plan.report?.["decisions"]), plan.report?.["rankCorrelation"])}
${positionSection(record(plan.report?.["validation"]))}
<footer>Made by Coppice. This page holds everything it shows and loads nothing.</footer>
</main></body></html>
`.text;
}

function densitySection({ length, density, heads }: AttentionLength): Html {
  const id = `heads-${length}`;
  const most = Math.max(0, ...heads.map((row) => row.length));
  return html`<section aria-labelledby="${id}"><h2 id="${id}">At ${length} tokens</h2>
<p class="soft">Share of the context that every KV head sees; ${density.toFixed(3)} on average.</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="${id}"><table class="heat"><thead><tr><th scope="col">layer</th>${Array.from(
    { length: most },
    (_, head) => html`<th scope="col">${head}</th>`,
  )}</tr></thead>
<tbody>${heads.map(
    (row, layer) => html`<tr><th scope="row">${layer}</th>${row.map(
      (share) => html`<td class="m" style="--a:${share.toFixed(3)}">${share.toFixed(2)}</td>`,
    )}</tr>
`,
  )}</tbody></table></div></section>`;
}

/** Predicted against measured loss of single heads, by their ranks. */
function decisionSection(decisions: readonly Values[], correlation: unknown): Html {
  const known = decisions.filter(
    ({ predicted, measured }) => Number.isFinite(predicted) && Number.isFinite(measured),
  );
  if (known.length === 0) return html``;
  const rank = (key: "predicted" | "measured") => {
    const order = known.map((_, i) => i).sort((a, b) => Number(known[a]?.[key]) - Number(known[b]?.[key]));
    return known.map((_, i) => order.indexOf(i) / Math.max(1, known.length - 1));
  };
  const [x, y] = [rank("predicted"), rank("measured")];
  const dots = known.map(
    (_, i) =>
      html`<circle cx="${(10 + 380 * (x[i] as number)).toFixed(1)}" cy="${(230 - 220 * (y[i] as number)).toFixed(1)}" r="5" fill="currentColor"></circle>`,
  );
  const rho = typeof correlation === "number" ? correlation.toFixed(3) : "not known";
  return html`<section aria-labelledby="decisions"><h2 id="decisions">Predicted against measured</h2>
<p class="soft">One head limited at a time: what the profile predicts, and the divergence of predictions that was measured. Rank correlation ${rho}.</p>
<svg viewBox="0 0 400 240" role="img" aria-label="ranks of measured losses over those of predicted ones">${dots}</svg>
<div class="scroll" tabindex="0" role="region" aria-labelledby="decisions"><table><thead><tr><th scope="col">layer</th><th scope="col">head</th><th scope="col">rule</th><th scope="col" class="n">predicted</th><th scope="col" class="n">measured</th></tr></thead>
<tbody>${known.map((decision) => {
    const { alpha, beta } = record(decision["rule"]) ?? {};
    return html`<tr><td>${text(decision["layer"])}</td><td>${text(decision["head"])}</td><td>${text(alpha)} + ${text(beta)} N</td><td class="n">${small(decision["predicted"])}</td><td class="n">${small(decision["measured"])}</td></tr>
`;
  })}</tbody></table></div></section>`;
}

function positionSection(validation: Values | undefined): Html {
  const dense = record(validation?.["dense"])?.["byPosition"];
  const own = record(validation?.["plan"])?.["byPosition"];
  if (!validation || !Array.isArray(dense) || !Array.isArray(own)) return html``;
  const size = Number(validation["length"]) / dense.length;
  return html`<section aria-labelledby="positions"><h2 id="positions">Loss by position</h2>
<p class="soft">Mean negative log likelihood of response tokens, in nats, by their place in texts of up to ${text(validation["length"])} tokens.</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="positions"><table><thead><tr><th scope="col">from token</th><th scope="col" class="n">as it is</th><th scope="col" class="n">under the plan</th></tr></thead>
<tbody>${dense.map((value, i) =>
    typeof value === "number"
      ? html`<tr><th scope="row">${Math.round(i * size)}</th><td class="n">${formatScore(value)}</td><td class="n">${small(own[i])}</td></tr>
`
      : undefined,
  )}</tbody></table></div></section>`;
}

type Values = Readonly<Record<string, unknown>>;

// A plan file comes from anywhere: its report is shown as far as it is what it should be.

function record(value: unknown): Values | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Values) : undefined;
}

function records(value: unknown): Values[] {
  return Array.isArray(value) ? value.map(record).filter((item) => item !== undefined) : [];
}

function text(value: unknown): HtmlValue {
  return typeof value === "number" || typeof value === "string" ? value : "?";
}

function small(value: unknown): string {
  return typeof value === "number" ? Number(value.toPrecision(3)).toString() : "?";
}

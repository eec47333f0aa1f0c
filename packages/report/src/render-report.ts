import { expertsSection } from "./experts-section.js";
import { formatBytes, formatCount, formatScore, formatShare } from "./format.js";
import { frontSection } from "./front-section.js";
import { Html, html } from "./html.js";
import { progressSection } from "./progress-section.js";
import type { ReportData, ReportFact, ReportScores } from "./report-data.js";
import { scoreSection } from "./score-section.js";
import { style } from "./style.js";

/**
 * The report of a run as one HTML page: no script, no request, every text escaped. It can be opened from a
 * disk, mailed, printed, and read on a phone and in the dark.
 */
export function renderReport(data: ReportData): string {
  const page = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>${data.title}</title>
<style>${new Html(style)}</style></head>
<body><main>
<header><h1>${data.title}</h1><p>${data.summary}</p>${data.notes.map((note) => html`<p class="note" role="note">${note}</p>`)}</header>
${cards(data)}
${data.scores.map(scoreSection)}
${expertsSection(data)}
${frontSection(data)}
${progressSection(data)}
${sizeSection(data)}
${factSection("work", "Work done", data.work)}
${repeatSection(data)}
<footer>Made by Coppice. This page holds everything it shows and loads nothing.</footer>
</main></body></html>
`;
  return page.text;
}

function cards({ scores, before, after }: ReportData): Html {
  return html`<div class="cards">
${scores.map(scoreCard)}
<div class="card"><span>Checkpoint</span><b>${formatBytes(after.bytes)}</b><span>from ${formatBytes(
    before.bytes,
  )}: ${formatShare(after.bytes, before.bytes)}</span></div>
<div class="card"><span>Parameters</span><b>${formatCount(after.parameters)}</b><span>from ${formatCount(
    before.parameters,
  )}: ${formatShare(after.parameters, before.parameters)}</span></div>
<div class="card"><span>Active per token</span><b>${formatCount(after.activeParameters)}</b><span>from ${formatCount(
    before.activeParameters,
  )}: ${formatShare(after.activeParameters, before.activeParameters)}</span></div>
</div>`;
}

function scoreCard({ task, rows }: ReportScores): Html | undefined {
  const full = rows.find(({ role }) => role === "full")?.holdout;
  const chosen = rows.find(({ role }) => role === "chosen")?.holdout;
  if (!chosen) return undefined;
  const what = task === undefined ? "Holdout score" : `Holdout score, ${task}`;
  return html`<div class="card"><span>${what}</span><b>${formatScore(chosen.value)}</b><span>${
    full
      ? html`full model ${formatScore(full.value)}${
          full.value > 0 ? `: ${formatShare(chosen.value, full.value)} of it` : ""
        }`
      : `${chosen.samples} samples`
  }</span></div>`;
}

function sizeSection({ before, after }: ReportData): Html {
  const row = (label: string, a: number, b: number) =>
    html`<tr><th scope="row">${label}</th><td class="n">${a.toLocaleString("en")}</td><td class="n">${b.toLocaleString(
      "en",
    )}</td><td class="n">${formatShare(b, a)}</td></tr>
`;
  return html`<section aria-labelledby="sizes"><h2 id="sizes">Size</h2>
<div class="scroll" tabindex="0" role="region" aria-labelledby="sizes"><table><thead><tr><th scope="col"></th><th scope="col" class="n">before</th><th scope="col" class="n">after</th><th scope="col" class="n">left</th></tr></thead>
<tbody>${row("bytes of weights", before.bytes, after.bytes)}${row("parameters", before.parameters, after.parameters)}${row(
    "active parameters per token",
    before.activeParameters,
    after.activeParameters,
  )}</tbody></table></div></section>`;
}

function factSection(id: string, title: string, facts: readonly ReportFact[]): Html {
  if (facts.length === 0) return html``;
  return html`<section aria-labelledby="${id}"><h2 id="${id}">${title}</h2>${list(facts)}</section>`;
}

function repeatSection({ command, identity }: ReportData): Html {
  return html`<section aria-labelledby="repeat"><h2 id="repeat">Repeat it</h2>
<p class="soft">The same command on the same files with the same seed gives the same plan.</p>
<pre>${command}</pre>${list(identity)}</section>`;
}

function list(facts: readonly ReportFact[]): Html {
  return html`<dl>${facts.map(({ label, value }) => html`<dt>${label}</dt><dd>${value}</dd>`)}</dl>`;
}

import type { SkipRule } from "@coppice/core";
import { formatShare } from "./format.js";
import { type Html, html } from "./html.js";
import type { ReportData, ReportLayer } from "./report-data.js";

/** Up to this many experts the cells carry numbers. */
const numberedExperts = 16;

/** Which experts of each layer are left, and with what weight they were merged. */
export function expertsSection({ layers }: ReportData): Html {
  const columns = Math.max(0, ...layers.map(({ experts }) => experts));
  if (columns === 0) return html``;
  const merged = layers.some(({ merge }) => merge);
  const numbered = columns <= numberedExperts;
  return html`<section aria-labelledby="experts"><h2 id="experts">Experts kept</h2>
<p class="soft">One row per layer, one column per expert of the full model. ${
    merged
      ? "An outlined cell keeps its router row; the number is the largest weight with which the expert went into a merged one."
      : "Filled cells are kept, with their router rows; the others are gone."
  }${notes(layers)}</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="experts"><table class="heat${numbered ? "" : " small"}">
<thead><tr><th scope="col"><span class="hidden">layer</span></th>${Array.from(
    { length: columns },
    (_, expert) =>
      html`<th scope="col">${numbered || expert % 8 === 0 ? expert : html`<span class="hidden">${expert}</span>`}</th>`,
  )}</tr></thead>
<tbody>${layers.map(
    (layer) => html`<tr><th scope="row">layer ${layer.layer}: ${layerWords(layer)}</th>${Array.from(
      { length: layer.experts },
      (_, expert) => cell(layer, expert, numbered),
    )}</tr>
`,
  )}</tbody></table></div></section>`;
}

/** What plans do beyond keeping and merging experts, where some layer does. */
function notes(layers: readonly ReportLayer[]): string {
  const sentences: [boolean, string][] = [
    [layers.some(({ mapped }) => mapped), "Router probabilities are mapped, which stock runtimes cannot do."],
    [
      layers.some(({ unitSlots }) => unitSlots),
      "Slots by units were put together hidden unit by hidden unit: their weights are averages over the units of an expert, those left out included.",
    ],
    [
      layers.some(({ refitSlots }) => refitSlots),
      "Where down projections were refitted, experts put out something else than before: their last matrix was computed anew, to make up for experts that are gone.",
    ],
    [
      layers.some(({ newRouter }) => newRouter),
      "Where the router is new, its rows are no longer those of the kept experts, but computed anew.",
    ],
    [
      layers.some(({ skip }) => skip),
      "By skip rules some tokens use fewer experts than the top-k, which stock runtimes cannot do; sizes per token are those without.",
    ],
  ];
  return sentences.map(([holds, sentence]) => (holds ? ` ${sentence}` : "")).join("");
}

function layerWords({ kept, experts, topK, unitSlots, refitSlots, newRouter, skip }: ReportLayer): string {
  return [
    `${kept.length} of ${experts}, top-${topK}`,
    ...(unitSlots ? [`${unitSlots} ${unitSlots === 1 ? "slot" : "slots"} by units`] : []),
    ...(refitSlots ? [`${refitSlots} down ${refitSlots === 1 ? "projection" : "projections"} refitted`] : []),
    ...(newRouter ? ["new router"] : []),
    ...(skip ? [skipWords(skip)] : []),
  ].join(", ");
}

function skipWords({ rule, threshold, spare }: SkipRule): string {
  const share = formatShare(threshold, 1);
  const what = rule === "ratio" ? `skips below ${share} of the largest` : `skips beyond ${share} of the sum`;
  return spare ? `${what}, spares ${formatShare(spare, 1)} of tokens` : what;
}

function cell(layer: ReportLayer, expert: number, numbered: boolean): Html {
  const kept = layer.kept.includes(expert);
  if (!layer.merge) {
    const text = kept ? "kept" : "gone";
    return kept
      ? html`<td class="k f" title="expert ${expert}: ${text}">${numbered ? "✓" : ""}<span class="hidden">${text}</span></td>`
      : html`<td title="expert ${expert}: ${text}"><span class="hidden">${text}</span></td>`;
  }
  const parts = layer.merge
    .map((row, slot) => ({ slot, weight: row[expert] ?? 0 }))
    .filter(({ weight }) => weight !== 0)
    .sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  const largest = parts[0]?.weight ?? 0;
  const title = [
    `expert ${expert}: ${kept ? "router row kept" : "router row gone"}`,
    ...parts.map(({ slot, weight }) => `slot ${slot} × ${weight.toFixed(3)}`),
  ].join(", ");
  const strength = Math.min(1, Math.abs(largest)).toFixed(2);
  const names = [
    largest > 0 ? "m" : largest < 0 ? "g" : "",
    kept ? "k" : "",
    Math.abs(largest) > 0.6 ? "d" : "",
  ].join(" ");
  const text = largest === 0 ? "" : largest.toFixed(2).replace("-", "−");
  return html`<td class="${names}" style="--a:${strength}" title="${title}">${
    numbered ? text : html`<span class="hidden">${text || "gone"}</span>`
  }</td>`;
}

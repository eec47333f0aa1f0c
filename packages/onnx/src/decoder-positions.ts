import type { AttentionSpec, MoeModel } from "@coppice/core";

/**
 * The longest text that a decoder graph computes exactly. Beyond it some models change with the length of the text or
 * the position in it: rotary frequencies leave the original context (`dynamic`, `longrope`), queries are scaled, attention
 * ends at the border of a chunk (Llama-4).
 */
export function decoderPositions({
  layers,
  contextLength,
}: Pick<MoeModel, "layers" | "contextLength">): number {
  return Math.min(contextLength, ...layers.map(({ attention }) => limitOf(attention)));
}

function limitOf(attention: AttentionSpec): number {
  const none = Number.POSITIVE_INFINITY;
  if (attention.kind === "other") return none;
  const scaling = attention.rotary?.scaling;
  const rotary = scaling?.kind === "dynamic" || scaling?.kind === "longrope" ? scaling.originalContext : none;
  if (attention.kind === "mla") return rotary;
  const { chunk = none, temperature } = attention;
  // The factor is 1 + scale ln(1 + floor((p + 1) / floor)): 1 as long as p + 1 < floor.
  return Math.min(rotary, chunk, temperature ? temperature.floor - 1 : none);
}

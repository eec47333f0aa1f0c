import type { LayerTap, Routing, Tap, TapField } from "@coppice/core";
import type { TokenGroups } from "./group-tokens.js";

interface TappedLayer {
  readonly layer: number;
  readonly tokens: number;
  readonly hidden: number;
  readonly input: Float32Array;
  readonly logits: Float32Array;
  readonly routing: Routing;
  readonly groups: TokenGroups;
  /** [tokens * k, hidden], unweighted expert outputs in the order of `groups`; present when a field needs them. */
  readonly sorted: Float32Array | undefined;
}

/** Shows a layer to a tap: the fields it asked for, and no others. */
export function reportLayer(tap: Tap, wanted: ReadonlySet<TapField>, seen: TappedLayer): void {
  const { layer, tokens, hidden, input, logits, routing, groups, sorted } = seen;
  const { topK, slots, gates } = routing;
  let shown: LayerTap = { layer, tokens, topK };
  if (wanted.has("input")) shown = { ...shown, input };
  if (wanted.has("routerLogits")) shown = { ...shown, routerLogits: logits };
  if (wanted.has("routing")) shown = { ...shown, slots, gates };
  if (sorted) {
    const { places } = groups;
    if (wanted.has("expertOutputs")) {
      shown = { ...shown, expertOutputs: byToken(sorted, places, hidden) };
    }
    if (wanted.has("expertNorms")) shown = { ...shown, expertNorms: norms(sorted, places, hidden) };
    if (wanted.has("output")) shown = { ...shown, output: weightedSums(sorted, routing, places, hidden) };
  }
  tap.onLayer(shown);
}

function byToken(sorted: Float32Array, places: Int32Array, hidden: number): Float32Array {
  const outputs = new Float32Array(sorted.length);
  for (let choice = 0; choice < places.length; choice++) {
    const from = (places[choice] as number) * hidden;
    outputs.set(sorted.subarray(from, from + hidden), choice * hidden);
  }
  return outputs;
}

function norms(sorted: Float32Array, places: Int32Array, hidden: number): Float32Array {
  return Float32Array.from(places, (place) => {
    let sum = 0;
    for (let i = place * hidden; i < (place + 1) * hidden; i++) sum += (sorted[i] as number) ** 2;
    return Math.sqrt(sum);
  });
}

function weightedSums(
  sorted: Float32Array,
  { topK, gates }: Routing,
  places: Int32Array,
  hidden: number,
): Float32Array {
  const output = new Float32Array((places.length / topK) * hidden);
  for (let choice = 0; choice < places.length; choice++) {
    const gate = gates[choice] as number;
    const from = (places[choice] as number) * hidden;
    const at = Math.floor(choice / topK) * hidden;
    for (let i = 0; i < hidden; i++) {
      output[at + i] = (output[at + i] as number) + gate * (sorted[from + i] as number);
    }
  }
  return output;
}

import type { LayerTap, Routing, Tap, TapField } from "@coppice/core";
import type { EveryShown } from "./every-expert.js";
import type { TokenGroups } from "./group-tokens.js";

interface TappedLayer {
  readonly layer: number;
  readonly tokens: number;
  readonly hidden: number;
  /** [tokens], place of each in the packed order of the request. */
  readonly rows: Int32Array;
  readonly residual: Float32Array;
  readonly input: Float32Array;
  readonly logits: Float32Array;
  readonly routing: Routing;
  /** True when gate weights are part of what experts read, and so of their outputs. */
  readonly scalesInput: boolean;
  readonly groups: TokenGroups;
  /**
   * Unweighted expert outputs in the order of `groups`, [M, hidden], and zeros behind them where choices are skipped;
   * present when a field needs them.
   */
  readonly sorted: Float32Array | undefined;
  /** Their norms, [M] and a zero; present when they are wanted. */
  readonly sortedNorms: Float32Array | undefined;
  /** What all slots compute from some tokens, as far as it was asked for. */
  readonly every: EveryShown;
}

/** Shows a layer to a tap: the fields it asked for, and no others. */
export function reportLayer(tap: Tap, wanted: ReadonlySet<TapField>, seen: TappedLayer): void {
  const { layer, tokens, rows, residual, input, logits, routing, sorted, sortedNorms } = seen;
  const { topK, slots, gates } = routing;
  let shown: LayerTap = { layer, tokens, topK, rows, ...seen.every };
  if (wanted.has("residual")) shown = { ...shown, residual };
  if (wanted.has("input")) shown = { ...shown, input };
  if (wanted.has("routerLogits")) shown = { ...shown, routerLogits: logits };
  if (wanted.has("routing")) shown = { ...shown, slots, gates };
  if (sortedNorms) shown = { ...shown, expertNorms: norms(seen, sortedNorms) };
  if (sorted) {
    if (wanted.has("expertOutputs")) shown = { ...shown, expertOutputs: byToken(seen, sorted) };
    if (wanted.has("expertPeaks")) shown = { ...shown, expertPeaks: peaks(seen, sorted) };
    if (wanted.has("output")) shown = { ...shown, output: weightedSums(seen, sorted) };
  }
  tap.onLayer(shown);
}

/** Calls `visit` with every choice (token, rank) and where its expert output begins. */
function eachChoice(
  { places }: TokenGroups,
  { topK }: Routing,
  hidden: number,
  visit: (choice: number, from: number) => void,
): void {
  const tokens = places.length / topK;
  for (let token = 0; token < tokens; token++) {
    for (let rank = 0; rank < topK; rank++) {
      visit(token * topK + rank, (places[rank * tokens + token] as number) * hidden);
    }
  }
}

function byToken({ hidden, groups, routing }: TappedLayer, sorted: Float32Array): Float32Array {
  const outputs = new Float32Array(groups.places.length * hidden);
  eachChoice(groups, routing, hidden, (choice, from) => {
    outputs.set(sorted.subarray(from, from + hidden), choice * hidden);
  });
  return outputs;
}

function norms({ groups, routing }: TappedLayer, sorted: Float32Array): Float32Array {
  const result = new Float32Array(groups.places.length);
  eachChoice(groups, routing, 1, (choice, from) => {
    result[choice] = sorted[from] as number;
  });
  return result;
}

function peaks({ hidden, groups, routing }: TappedLayer, sorted: Float32Array): Float32Array {
  const result = new Float32Array(groups.places.length);
  eachChoice(groups, routing, hidden, (choice, from) => {
    let most = 0;
    for (let i = from; i < from + hidden; i++) most = Math.max(most, Math.abs(sorted[i] as number));
    result[choice] = most;
  });
  return result;
}

function weightedSums(
  { hidden, groups, routing, tokens, scalesInput }: TappedLayer,
  sorted: Float32Array,
): Float32Array {
  const output = new Float32Array(tokens * hidden);
  eachChoice(groups, routing, hidden, (choice, from) => {
    const gate = scalesInput ? 1 : (routing.gates[choice] as number);
    const at = Math.floor(choice / routing.topK) * hidden;
    for (let i = 0; i < hidden; i++) {
      output[at + i] = (output[at + i] as number) + gate * (sorted[from + i] as number);
    }
  });
  return output;
}

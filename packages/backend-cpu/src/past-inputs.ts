import { type AttentionSpec, CachePlaces } from "@coppice/core";
import { type AttentionPast, type AttentionShape, operatorHeads, pastNames } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import type { HeadCache } from "./cache-group.js";
import { type Sights, sightMask } from "./masked-sight.js";
import type { Feeds, Runtime } from "./sessions.js";
import type { UnitInputs } from "./unit-inputs.js";

/** How the graph of a layer takes what its cache holds, and the inputs for it. */
export interface PastInputs {
  readonly past: AttentionPast;
  readonly feeds: Feeds;
  /** Places in front of the new tokens, by group. */
  readonly places: readonly number[];
}

/**
 * @param groups of the layer's cache
 * @param sights what a masker lets the sequences see, in a layer whose keys all lie by their positions
 */
export function pastInputs(
  runtime: Runtime,
  unit: UnitInputs,
  groups: readonly HeadCache[],
  attention: AttentionSpec,
  shape: AttentionShape,
  sights?: Sights,
): PastInputs {
  const int32 = (values: ArrayLike<number>, dims: number[] = [values.length]) =>
    new runtime.Tensor("int32", Int32Array.from(values), dims);
  const past = unit.pieces[0]?.past ?? 0;
  // Longer additions run one sequence after another.
  const { step } = unit;
  const chunk = attention.kind === "gqa" ? attention.chunk : undefined;
  const { kvHeads } = operatorHeads(shape);
  const share = shape.heads / kvHeads;
  const sinks = shape.kind === "gqa" && shape.sinks ? [1] : [];
  const feeds: Record<string, Tensor> = {};
  const places: number[] = [];
  const parts = groups.map((cache, g) => {
    const { group, key, value } = cache;
    const filled = new CachePlaces(group.span).filled(past);
    const shown = sights && sights.size > 0;
    const masked = shown || step || group.span !== undefined || group.own !== undefined;
    const before = step ? cache.places : filled;
    places.push(before);
    feeds[pastNames.key(g)] = key;
    feeds[pastNames.value(g)] = value;
    if (shown) feeds[pastNames.mask(g)] = maskOf(sights, before);
    else if (masked) feeds[pastNames.mask(g)] = unit.pastMask({ places: before, group, share, chunk });
    if (groups.length > 1) feeds[pastNames.heads(g)] = int32(group.heads);
    if (step) {
      const sizes = BigInt64Array.from([before, unit.longest, ...sinks], BigInt);
      feeds[pastNames.sizes(g)] = new runtime.Tensor("int64", sizes, [sizes.length]);
    } else {
      feeds[pastNames.lengths(g)] = int32([filled + unit.longest - 1]);
      feeds[pastNames.total(g)] = int32([filled + unit.longest], []);
    }
    return { kvHeads: group.heads.length, masked };
  });
  if (groups.length > 1) {
    const order = new Int32Array(kvHeads);
    for (const [place, head] of groups.flatMap(({ group }) => [...group.heads]).entries())
      order[head] = place;
    feeds.order = int32(order);
  }
  function maskOf(sights: Sights, places: number): Tensor {
    const { heads } = shape;
    const { pieces, longest } = unit;
    const values = sightMask(sights, pieces, { heads, longest, places });
    const rows = step ? [kvHeads, share] : [heads, longest];
    return new runtime.Tensor("float32", values, [pieces.length, ...rows, places + longest]);
  }
  return { past: { groups: parts, by: step ? "step" : "operator" }, feeds, places };
}

/**
 * [pieces, positions], what every position receives, from what places do.
 * @param results [pieces, places and new tokens, and maybe sinks] by group
 */
export function receivedByPosition(
  runtime: Runtime,
  unit: UnitInputs,
  groups: readonly HeadCache[],
  { places }: PastInputs,
  results: readonly Tensor[],
): Tensor {
  const { positions, pieces } = unit;
  const sums = new Float32Array(pieces.length * positions);
  for (const [g, { data, dims }] of results.entries()) {
    const columns = dims[1] as number;
    const layout = new CachePlaces(groups[g]?.group.span);
    for (const [p, { begin, end, past }] of pieces.entries()) {
      const add = (position: number, column: number, count: number) => {
        for (let i = 0; i < count; i++) {
          const at = p * positions + position + i;
          sums[at] = (sums[at] as number) + (data[p * columns + column + i] as number);
        }
      };
      layout.ranges(0, past, past, add);
      add(past, places[g] as number, end - begin);
    }
  }
  return new runtime.Tensor("float32", sums, [pieces.length, positions]);
}

import type { LayerSpans, MoeModel } from "@coppice/core";
import type { GpuBuffer, SequenceSpan } from "@coppice/kernels-webgpu";
import { shapeOf } from "./attention-block.js";
import type { AttentionLimits } from "./attention-limits.js";
import type { DeviceCache } from "./kv-cache.js";
import type { Workspace } from "./workspace.js";

/** Spans of all limited layers of a run, on the device. */
export interface SpanSights {
  /** [entries] vec4u, the table of `AttentionSight`. */
  readonly table: GpuBuffer;
  readonly layers: ReadonlyMap<number, LayerSight>;
}

/** How a run computes the attention of a limited layer. Numbers are first entries of the table. */
export interface LayerSight {
  /** Most keys that a query sees. */
  readonly longest: number;
  /** For keys and values of this run, heads in turn; absent where queries read the cache. */
  readonly fresh: number | undefined;
  /** The rows of the cache, where there is one. */
  readonly kept: { readonly first: number; readonly keys: GpuBuffer; readonly values: GpuBuffer } | undefined;
}

/**
 * Makes room in the cache, and puts what heads see into one table. The first run of a cache reads its own keys and values, so
 * that a prompt may be longer than a ring; later runs read the cache.
 */
export function spanSights(
  model: MoeModel,
  { from, to }: { readonly from: number; readonly to: number },
  limits: AttentionLimits,
  sequences: readonly SequenceSpan[],
  cache: DeviceCache | undefined,
  workspace: Workspace,
): SpanSights | undefined {
  const entries: number[] = [];
  const append = (values: readonly number[]) => {
    const first = entries.length / 4;
    for (const value of values) entries.push(value);
    return first;
  };
  const layers = new Map<number, LayerSight>();
  const begins = sequences.every(({ past }) => past === 0);
  for (const { index, attention } of model.layers.slice(from, to)) {
    const spans = limits.spans.get(index);
    if (!spans || attention.kind === "other") continue;
    const shape = shapeOf(attention);
    const kept = cache?.reserveSpans(index, spans, shape, sequences, begins);
    layers.set(index, {
      longest: mostSeen(spans, sequences),
      fresh: cache && !begins ? undefined : append(inTurn(spans, sequences, shape.kvHeads)),
      kept: kept && { keys: kept.keys, values: kept.values, first: append(kept.table) },
    });
  }
  if (layers.size === 0) return undefined;
  return { table: workspace.put("spans", Uint32Array.from(entries)), layers };
}

function mostSeen(spans: readonly (LayerSpans | undefined)[], sequences: readonly SequenceSpan[]): number {
  const seen = sequences.map(({ tokens, past }, s) => {
    const heads = spans[s] ?? [undefined];
    return Math.min(
      past + tokens,
      Math.max(...heads.map((span) => (span ? span.sinks + span.window : past + tokens))),
    );
  });
  return Math.max(...seen);
}

/** Entries for keys [tokens, kvHeads] of a run. */
function inTurn(
  spans: readonly (LayerSpans | undefined)[],
  sequences: readonly SequenceSpan[],
  kvHeads: number,
): number[] {
  return sequences.flatMap(({ row }, s) =>
    Array.from({ length: kvHeads }, (_, head) => {
      const { sinks = 0, window = 0 } = spans[s]?.[head] ?? {};
      return [sinks, window, row * kvHeads + head, 0];
    }).flat(),
  );
}

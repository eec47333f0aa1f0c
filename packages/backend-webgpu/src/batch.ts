import type { AttentionSpec, CheckedRunRequest, MoeModel, RotarySpec } from "@coppice/core";
import { attentionTables, type GpuBuffer, type QueryTile, type SequenceSpan } from "@coppice/kernels-webgpu";
import type { AttentionLimits, AttentionMasks } from "./attention-limits.js";
import type { DeviceCache } from "./kv-cache.js";
import type { RotaryTables } from "./rotary-tables.js";
import { type SpanSights, spanSights } from "./span-sights.js";
import type { Workspace } from "./workspace.js";

/** What all layers of a run share, written to the device before its first layer. */
export interface Batch {
  readonly tokens: number;
  readonly starts: Int32Array;
  readonly spans: readonly SequenceSpan[];
  readonly cache: DeviceCache | undefined;
  /** Positions per sequence of the cache. */
  readonly capacity: number;
  /** [tokens] u32: row of the cache for the key of each token. */
  readonly keyRows: GpuBuffer | undefined;
  readonly tiles: GpuBuffer;
  readonly tileCount: number;
  readonly queryTile: QueryTile;
  readonly rows: GpuBuffer;
  readonly longest: number;
  /** Most tokens of one sequence in this run. */
  readonly most: number;
  /** Of layers that a plan limits; undefined: there are none. */
  readonly sights: SpanSights | undefined;
  readonly masks: AttentionMasks | undefined;
  /** By kind of rotation: table, and the row of each token. */
  readonly rotary: ReadonlyMap<RotarySpec, { readonly table: GpuBuffer; readonly rows: GpuBuffer }>;
  /** By `temperature`: [tokens] f32 factors on queries. */
  readonly temperatures: ReadonlyMap<object, GpuBuffer>;
}

type Attention = Exclude<AttentionSpec, { kind: "other" }>;

export function prepareBatch(
  model: MoeModel,
  { tokens, starts, from, to }: CheckedRunRequest,
  cache: DeviceCache | undefined,
  limits: AttentionLimits,
  tables: RotaryTables,
  workspace: Workspace,
): Batch {
  const lengths = Array.from(starts.subarray(1), (end, s) => end - (starts[s] as number));
  const pasts = lengths.map((_, s) => cache?.lengths[s] ?? 0);
  const capacity =
    cache?.capacityFor(Math.max(...lengths.map((length, s) => length + (pasts[s] as number)))) ?? 0;
  const spans = lengths.map((length, s): SequenceSpan => {
    const row = starts[s] as number;
    return { row, tokens: length, past: pasts[s] as number, keyRow: cache ? s * capacity : row };
  });
  const attention = attentionTables(spans);
  const keyRows = cache
    ? workspace.put(
        "key rows",
        Uint32Array.from(
          spans.flatMap((s) => Array.from({ length: s.tokens }, (_, i) => s.keyRow + s.past + i)),
        ),
      )
    : undefined;
  const specs = model.layers
    .slice(from, to)
    .flatMap(({ attention }) => (attention.kind === "other" ? [] : [attention]));
  const shared = {
    tokens,
    starts,
    spans,
    cache,
    capacity,
    keyRows,
    tiles: workspace.put("tiles", attention.tiles),
    tileCount: attention.tiles.length / 4,
    queryTile: attention.queryTile,
    rows: workspace.put("rows", attention.rows),
    longest: attention.longest,
    most: Math.max(...lengths),
    sights: spanSights(model, { from, to }, limits, spans, cache, workspace),
    masks: limits.masks,
  };
  return {
    ...shared,
    rotary: rotations(specs, spans, tables, workspace),
    temperatures: factors(specs, spans, workspace),
  };
}

function rotations(
  specs: readonly Attention[],
  spans: readonly SequenceSpan[],
  tables: RotaryTables,
  workspace: Workspace,
): Batch["rotary"] {
  const found = new Map<RotarySpec, { table: GpuBuffer; rows: GpuBuffer }>();
  const equal = new Map<string, { table: GpuBuffer; rows: GpuBuffer }>();
  for (const { rotary } of specs) {
    if (!rotary || found.has(rotary)) continue;
    const key = JSON.stringify(rotary);
    let made = equal.get(key);
    if (!made) {
      const { table, rows } = tables.rowsFor(rotary, spans);
      made = { table, rows: workspace.put(`rotary rows ${equal.size}`, rows) };
      equal.set(key, made);
    }
    found.set(rotary, made);
  }
  return found;
}

/** `1 + scale * ln(1 + floor((p + 1) / floor))` of every position, `GroupedQueryAttentionSpec.temperature`. */
function factors(
  specs: readonly Attention[],
  spans: readonly SequenceSpan[],
  workspace: Workspace,
): Batch["temperatures"] {
  const found = new Map<object, GpuBuffer>();
  for (const spec of specs) {
    const temperature = spec.kind === "gqa" ? spec.temperature : undefined;
    if (!temperature || found.has(temperature)) continue;
    const { floor, scale } = temperature;
    const values = spans.flatMap(({ tokens, past }) =>
      Array.from({ length: tokens }, (_, i) => 1 + scale * Math.log(1 + Math.floor((past + i + 1) / floor))),
    );
    found.set(temperature, workspace.put(`temperatures ${found.size}`, Float32Array.from(values)));
  }
  return found;
}

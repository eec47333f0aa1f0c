import { type CheckedRunRequest, type MoeModel, moeLayers } from "@coppice/core";
import { CacheGroup, type CpuCache, type LayerCache } from "./kv-cache.js";
import type { Runtime } from "./sessions.js";

/** Tokens `begin` to `end` of a sequence of the request, after `past` tokens that a cache holds. */
export interface Piece {
  readonly sequence: number;
  readonly begin: number;
  readonly end: number;
  readonly past: number;
}

/** What goes through the layers at once. */
export interface Unit {
  readonly pieces: readonly Piece[];
  /** Where keys and values of a layer are kept, when they are. */
  readonly cache?: (layer: number) => LayerCache;
}

/** How much goes through the layers at once; depends on the model alone, so that equal requests split equally. */
export interface UnitLimits {
  readonly tokens: number;
  /** Attention scores, [sequences, heads, queries, keys] values. */
  readonly scores: number;
}

/** Bytes of activations, and of attention scores, that one unit may take: each much larger than a cache. */
const unitBytes = 2 ** 28;
/** More tokens at once gain nothing once every expert has some hundreds. */
const mostTokens = 4096;

export function unitLimits(model: MoeModel): UnitLimits {
  const topK = Math.max(1, ...moeLayers(model).map(({ feedForward }) => feedForward.router.topK));
  let bytes = 0;
  for (const { attention, feedForward } of model.layers) {
    const dense = feedForward.kind === "dense";
    const width = dense ? feedForward.mlp.width : (feedForward.experts[0]?.width ?? 0) * topK;
    const projected = (attention.heads + 2 * attention.kvHeads) * attention.headDim;
    bytes = Math.max(bytes, 4 * (model.hiddenSize * (6 + 2 * topK) + 3 * projected + 3 * width));
  }
  return {
    tokens: Math.max(1, Math.min(mostTokens, Math.floor(unitBytes / bytes))),
    scores: unitBytes / 4 / Math.max(...model.layers.map(({ attention }) => attention.heads)),
  };
}

/**
 * Splits a request without a cache into units of whole sequences, shortest first unless `keepOrder`, so that few
 * tokens are padding. A sequence too long for one unit becomes several, tied together by a cache of their own.
 */
export function* splitSequences(
  runtime: Runtime,
  model: MoeModel,
  { starts }: CheckedRunRequest,
  limits: UnitLimits,
  keepOrder: boolean,
): Generator<Unit> {
  const count = starts.length - 1;
  const length = (s: number) => (starts[s + 1] as number) - (starts[s] as number);
  const order = Array.from({ length: count }, (_, s) => s);
  if (!keepOrder) order.sort((a, b) => length(a) - length(b) || a - b);
  let pieces: Piece[] = [];
  let longest = 0;
  const flush = function* (): Generator<Unit> {
    if (pieces.length > 0) yield { pieces };
    pieces = [];
    longest = 0;
  };
  for (const sequence of order) {
    const end = length(sequence);
    if (!fits(1, end, limits)) {
      yield* flush();
      const group = new CacheGroup(runtime, model, sequence, 1);
      yield* chunks(group, sequence, end, 0, limits);
      continue;
    }
    const next = Math.max(longest, end);
    if (!fits(pieces.length + 1, next, limits)) yield* flush();
    longest = Math.max(longest, end);
    pieces.push({ sequence, begin: 0, end, past: 0 });
  }
  yield* flush();
}

/** Units of a request that continues what a cache holds. */
export function* splitCached(
  runtime: Runtime,
  model: MoeModel,
  { starts }: CheckedRunRequest,
  limits: UnitLimits,
  cache: CpuCache,
): Generator<Unit> {
  const length = (s: number) => (starts[s + 1] as number) - (starts[s] as number);
  const groups = cache.groups(() => makeGroups(runtime, model, starts.length - 1, length, limits));
  for (const group of groups) {
    const sequences = Array.from({ length: group.count }, (_, i) => group.first + i);
    const past = (s: number) => cache.lengths[s] as number;
    const longest = Math.max(...sequences.map((s) => past(s) + length(s)));
    // The attention operator takes several sequences at once only from their start or one token at a time.
    const together = sequences.every((s) => past(s) === 0)
      ? fits(group.count, longest, limits)
      : sequences.every((s) => past(s) > 0 && length(s) === 1);
    if (!together) {
      for (const s of sequences) yield* chunks(group, s, length(s), past(s), limits);
      continue;
    }
    group.reserve(longest);
    yield {
      pieces: sequences.map((s) => ({ sequence: s, begin: 0, end: length(s), past: past(s) })),
      cache: (layer) => group.layer(layer),
    };
  }
}

/** One sequence behind `past` tokens of its cache, in as many steps as the limits ask for. */
function* chunks(
  group: CacheGroup,
  sequence: number,
  length: number,
  past: number,
  limits: UnitLimits,
): Generator<Unit> {
  group.reserve(past + length);
  const size = Math.max(1, Math.min(limits.tokens, Math.floor(limits.scores / (past + length))));
  for (let begin = 0; begin < length; begin += size) {
    const end = Math.min(begin + size, length);
    yield {
      pieces: [{ sequence, begin, end, past: past + begin }],
      cache: (layer) => group.layer(layer, sequence - group.first),
    };
  }
}

function makeGroups(
  runtime: Runtime,
  model: MoeModel,
  count: number,
  length: (sequence: number) => number,
  limits: UnitLimits,
): CacheGroup[] {
  const groups: CacheGroup[] = [];
  let first = 0;
  let longest = 0;
  for (let s = 0; s < count; s++) {
    const next = Math.max(longest, length(s));
    if (s > first && !fits(s - first + 1, next, limits)) {
      groups.push(new CacheGroup(runtime, model, first, s - first));
      first = s;
      longest = 0;
    }
    longest = Math.max(longest, length(s));
  }
  groups.push(new CacheGroup(runtime, model, first, count - first));
  return groups;
}

function fits(sequences: number, longest: number, limits: UnitLimits): boolean {
  return sequences * longest <= limits.tokens && sequences * longest * longest <= limits.scores;
}

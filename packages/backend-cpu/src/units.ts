import { type CheckedRunRequest, type MoeModel, rotaryRegime } from "@coppice/core";
import { operatorHeads, paddedShape } from "@coppice/onnx";
import { CacheGroup, type LayerCache } from "./cache-group.js";
import type { PlanSpans } from "./head-groups.js";
import type { CpuCache } from "./kv-cache.js";
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
  /** Tokens of the longest of its sequences in all, those of later units included; all are of one rotary regime. */
  readonly length: number;
  /** What heads see in all of its sequences; absent: what the model says. */
  readonly spans?: PlanSpans | undefined;
  /** Where keys and values of a layer are kept, when they are. */
  readonly cache?: (layer: number) => LayerCache;
  /** The next unit goes on with the same sequence. */
  readonly continued?: true;
}

/** How much goes through the layers at once; depends on the model alone, so that equal requests split equally. */
export interface UnitLimits {
  readonly tokens: number;
  /** Attention scores of one head, [sequences, queries, keys] values. */
  readonly scores: number;
  /** Bytes of what all experts of a layer compute from some tokens at once (`Tap.every`). */
  readonly everyBytes: number;
}

/** Bytes of activations, and of attention scores, that one unit may take: each much larger than a cache. */
const unitBytes = 2 ** 28;
/** Some tens of tokens at once in the widest models, which is when their experts' weights no longer dominate. */
const everyBytes = 2 ** 27;
/** More tokens at once gain nothing once every expert has some hundreds. */
const mostTokens = 4096;
/** Tokens at once of a sequence whose heads do not see all of it: they attend to what the cache keeps, and to each other. */
const spanTokens = 512;

export function unitLimits(model: MoeModel): UnitLimits {
  const { hiddenSize } = model;
  let bytes = 0;
  let matrices = 1;
  for (const layer of model.layers) {
    const { attention, feedForward } = layer;
    if (attention.kind === "other" || feedForward.kind === "other") continue;
    const { kvHeads, size } = operatorHeads(paddedShape(layer, hiddenSize));
    const projected = (attention.heads + 2 * kvHeads) * size;
    const topK = feedForward.kind === "moe" ? feedForward.router.topK : 1;
    const width =
      feedForward.kind === "moe"
        ? Math.max((feedForward.experts[0]?.width ?? 0) * topK, feedForward.shared?.width ?? 0)
        : feedForward.mlp.width;
    bytes = Math.max(bytes, 4 * (hiddenSize * (6 + 2 * topK) + 3 * projected + 3 * width));
    // A mask between chunks is as large as the scores of one head.
    const masks = attention.kind === "gqa" && attention.chunk !== undefined ? 1 : 0;
    matrices = Math.max(matrices, attention.heads + masks);
  }
  return {
    tokens: Math.max(1, Math.min(mostTokens, Math.floor(unitBytes / Math.max(1, bytes)))),
    scores: unitBytes / 4 / matrices,
    everyBytes,
  };
}

/** Sequences may run side by side when the layers turn their positions alike: when this is equal for their lengths. */
function rotaryRegimes({ layers }: MoeModel): (length: number) => string {
  const rotaries = new Map(
    layers.flatMap(({ attention }) => {
      const rotary = attention.kind === "other" ? undefined : attention.rotary;
      return rotary?.scaling ? [[JSON.stringify(rotary), rotary] as const] : [];
    }),
  );
  return (length) => Array.from(rotaries.values(), (rotary) => rotaryRegime(rotary, length)).join();
}

/**
 * Splits a request without a cache into units of whole sequences of one rotary regime and the same spans, shortest first
 * unless `keepOrder`, so that few tokens are padding. A sequence too long for one unit becomes several, tied together by a cache
 * of their own.
 * @param spans of each sequence
 */
export function* splitSequences(
  runtime: Runtime,
  model: MoeModel,
  { starts, from, to }: CheckedRunRequest,
  limits: UnitLimits,
  keepOrder: boolean,
  spans: readonly (PlanSpans | undefined)[],
): Generator<Unit> {
  const count = starts.length - 1;
  const length = (s: number) => (starts[s + 1] as number) - (starts[s] as number);
  const order = Array.from({ length: count }, (_, s) => s);
  if (!keepOrder) order.sort((a, b) => length(a) - length(b) || a - b);
  const regimeOf = rotaryRegimes(model);
  let pieces: Piece[] = [];
  let longest = 0;
  let common: PlanSpans | undefined;
  const flush = function* (): Generator<Unit> {
    if (pieces.length > 0) yield { pieces, length: longest, spans: common };
    pieces = [];
    longest = 0;
  };
  for (const sequence of order) {
    const end = length(sequence);
    const own = spans[sequence];
    if (!fits(1, end, limits) || (own && end > spanTokens)) {
      yield* flush();
      const group = new CacheGroup(runtime, model, { from, to }, sequence, 1, own);
      yield* chunks(group, sequence, end, 0, limits);
      continue;
    }
    const next = Math.max(longest, end);
    const alike = own?.key === common?.key && regimeOf(end) === regimeOf(longest);
    const joins = pieces.length === 0 || alike;
    if (!joins || !fits(pieces.length + 1, next, limits)) yield* flush();
    longest = Math.max(longest, end);
    common = own;
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
  const regimeOf = rotaryRegimes(model);
  const groups = cache.groups(() => makeGroups(runtime, model, cache.spans, length, limits));
  for (const group of groups) {
    const sequences = Array.from({ length: group.count }, (_, i) => group.first + i);
    const past = (s: number) => cache.lengths[s] as number;
    const longest = Math.max(...sequences.map((s) => past(s) + length(s)));
    group.reserve(longest);
    // The attention operator takes several sequences at once only from their start or one token at a time.
    const together = sequences.every((s) => past(s) === 0)
      ? fits(group.count, longest, limits) && !(group.spans && longest > spanTokens)
      : sequences.every((s) => past(s) > 0 && length(s) === 1);
    const alike = sequences.every((s) => regimeOf(past(s) + length(s)) === regimeOf(longest));
    if (!together || !alike) {
      for (const s of sequences) yield* chunks(group, s, length(s), past(s), limits);
      continue;
    }
    yield {
      pieces: sequences.map((s) => ({ sequence: s, begin: 0, end: length(s), past: past(s) })),
      length: longest,
      spans: group.spans,
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
  const most = Math.min(limits.tokens, group.spans ? spanTokens : limits.tokens);
  const size = Math.max(1, Math.min(most, Math.floor(limits.scores / (past + length))));
  for (let begin = 0; begin < length; begin += size) {
    const end = Math.min(begin + size, length);
    yield {
      pieces: [{ sequence, begin, end, past: past + begin }],
      length: past + length,
      spans: group.spans,
      cache: (layer) => group.layer(layer, sequence - group.first),
      ...(end < length && { continued: true }),
    };
  }
}

function makeGroups(
  runtime: Runtime,
  model: MoeModel,
  spans: readonly (PlanSpans | undefined)[],
  length: (sequence: number) => number,
  limits: UnitLimits,
): CacheGroup[] {
  const groups: CacheGroup[] = [];
  const all = { from: 0, to: model.layers.length };
  let first = 0;
  let longest = 0;
  const flush = (end: number) =>
    groups.push(new CacheGroup(runtime, model, all, first, end - first, spans[first]));
  for (let s = 0; s < spans.length; s++) {
    const next = Math.max(longest, length(s));
    const alike = spans[s]?.key === spans[first]?.key;
    if (s > first && !(alike && fits(s - first + 1, next, limits))) {
      flush(s);
      first = s;
      longest = 0;
    }
    longest = Math.max(longest, length(s));
  }
  flush(spans.length);
  return groups;
}

/** Units one by one, or when `together` those of one sequence at once. */
export function* bundleUnits(units: Iterable<Unit>, together: boolean): Generator<readonly Unit[]> {
  let bundle: Unit[] = [];
  for (const unit of units) {
    bundle.push(unit);
    if (together && unit.continued) continue;
    yield bundle;
    bundle = [];
  }
}

function fits(sequences: number, longest: number, limits: UnitLimits): boolean {
  return sequences * longest <= limits.tokens && sequences * longest * longest <= limits.scores;
}

import type {
  AttentionSpec,
  GroupedQueryAttentionSpec,
  HeadNormSpec,
  LatentAttentionSpec,
  LinearSpec,
  NormSpec,
  TensorRef,
} from "@coppice/core";
import { chunks, inner, product, range, softmax, times, total, type Vector } from "./slow-math.js";
import { rotate } from "./slow-rotary.js";

/** What a formula needs of a model in memory. */
export interface SlowWeights {
  values(ref: TensorRef): Float32Array;
  /** Positions known to the run that computed position t: the length that rotary scalings depend on. */
  lengthAt(position: number): number;
}

/** [tokens][heads][size]; keys and values of query head h are those of head `floor(h * kvHeads / heads)`. */
interface Heads {
  readonly queries: Vector[][];
  readonly keys: Vector[][];
  readonly values: Vector[][];
}

/** Whether the query at one position sees the key at another, both before what the model itself says; by query head. */
export type SlowHeadSight = (head: number, query: number, key: number) => boolean;

export interface SlowAttention extends Pick<Heads, "queries" | "keys"> {
  /** [tokens][hidden] */
  readonly attended: Vector[];
  /** [tokens], attention that each gets from itself and later tokens of its run, averaged over heads and these tokens. */
  readonly received: Vector;
}

/** Attention of one sequence, whose tokens are [tokens][hidden]; heads see no more than `sight` lets them. */
export function slowAttention(
  spec: AttentionSpec,
  xs: Vector[],
  weights: SlowWeights,
  sight: SlowHeadSight = () => true,
): SlowAttention {
  if (spec.kind === "other") throw new Error(`there is no formula for ${spec.name}`);
  const heads = spec.kind === "gqa" ? groupedHeads(spec, xs, weights) : latentHeads(spec, xs, weights);
  const sinks = spec.kind === "gqa" && spec.sinks ? weights.values(spec.sinks) : undefined;
  const received: Vector = xs.map(() => 0);
  const attended = xs.map((_, t) => {
    const within = range(0, t + 1).filter((s) => sees(spec, t, s));
    const mixed = (heads.queries[t] as Vector[]).flatMap((query, head) => {
      const shared = Math.floor((head * (heads.keys[t] as Vector[]).length) / spec.heads);
      const seen = within.filter((s) => sight(head, t, s));
      const scores = seen.map((s) => spec.scale * inner(query, heads.keys[s]?.[shared] as Vector));
      const shares = softmax(sinks ? [...scores, sinks[head] as number] : scores);
      seen.forEach((s, k) => {
        const queries = spec.heads * (weights.lengthAt(s) - s);
        const inRun = weights.lengthAt(s) === weights.lengthAt(t);
        if (inRun) received[s] = (received[s] as number) + (shares[k] as number) / queries;
      });
      const own = heads.values[t] as Vector[];
      return (own[shared] as Vector).map((_, i) =>
        total(seen.map((s, k) => (shares[k] as number) * (heads.values[s]?.[shared]?.[i] as number))),
      );
    });
    return applyLinear(spec.output, mixed, weights);
  });
  return { attended, received, queries: heads.queries, keys: heads.keys };
}

function sees(spec: GroupedQueryAttentionSpec | LatentAttentionSpec, t: number, s: number): boolean {
  if (spec.slidingWindow !== undefined && t - s >= spec.slidingWindow) return false;
  const chunk = spec.kind === "gqa" ? spec.chunk : undefined;
  return chunk === undefined || Math.floor(t / chunk) === Math.floor(s / chunk);
}

function groupedHeads(spec: GroupedQueryAttentionSpec, xs: Vector[], weights: SlowWeights): Heads {
  const { headDim, rotary, temperature, normAfterRotary } = spec;
  const clip = (x: Vector) =>
    spec.clip === undefined
      ? x
      : x.map((value) => Math.min(spec.clip as number, Math.max(-(spec.clip as number), value)));
  const headNorm = (norm: HeadNormSpec | undefined, x: Vector): Vector => {
    if (!norm) return x;
    if (norm.over === "projection") return applyNorm(norm, x, weights);
    return chunks(x, headDim).flatMap((head) => applyNorm(norm, head, weights));
  };
  const turned = (x: Vector, t: number): Vector => {
    if (!rotary) return x;
    return chunks(x, headDim).flatMap((head) => [
      ...rotate(head.slice(0, rotary.dimensions), t, weights.lengthAt(t), rotary),
      ...head.slice(rotary.dimensions),
    ]);
  };
  const project = (linear: LinearSpec, norm: HeadNormSpec | undefined) =>
    xs.map((x, t) => {
      const projected = applyLinear(linear, x, weights);
      return normAfterRotary
        ? headNorm(norm, turned(clip(projected), t))
        : turned(clip(headNorm(norm, projected)), t);
    });
  const warmth = (t: number) =>
    temperature ? 1 + temperature.scale * Math.log1p(Math.floor((t + 1) / temperature.floor)) : 1;
  return {
    queries: project(spec.query, spec.queryNorm).map((x, t) => chunks(times(warmth(t), x), headDim)),
    keys: project(spec.key, spec.keyNorm).map((x) => chunks(x, headDim)),
    values: xs.map((x) => chunks(clip(applyLinear(spec.value, x, weights)), headDim)),
  };
}

function latentHeads(spec: LatentAttentionSpec, xs: Vector[], weights: SlowWeights): Heads {
  const { nopeDim, valueDim, rank, rotary } = spec;
  const turned = (x: Vector, t: number) => rotate(x, t, weights.lengthAt(t), rotary);
  const queries = xs.map((x, t) => {
    const low = spec.queryDown ? applyLinear(spec.queryDown, x, weights) : x;
    const input = spec.queryNorm ? applyNorm(spec.queryNorm, low, weights) : low;
    return chunks(applyLinear(spec.query, input, weights), nopeDim + rotary.dimensions).map((head) => [
      ...head.slice(0, nopeDim),
      ...turned(head.slice(nopeDim), t),
    ]);
  });
  const latents = xs.map((x) => applyLinear(spec.kvDown, x, weights));
  const unfolded = latents.map((latent) => {
    const up = applyLinear(spec.kvUp, applyNorm(spec.kvNorm, latent.slice(0, rank), weights), weights);
    return chunks(up, nopeDim + valueDim);
  });
  return {
    queries,
    keys: unfolded.map((heads, t) => {
      const shared = turned((latents[t] as Vector).slice(rank), t);
      return heads.map((head) => [...head.slice(0, nopeDim), ...shared]);
    }),
    values: unfolded.map((heads) => heads.map((head) => head.slice(nopeDim))),
  };
}

export function applyLinear({ weight, bias }: LinearSpec, x: Vector, { values }: SlowWeights): Vector {
  return product(values(weight), x, bias && values(bias));
}

export function applyNorm(norm: NormSpec, x: Vector, { values }: SlowWeights): Vector {
  const mean = norm.kind === "layer" ? total(x) / x.length : 0;
  const centred = x.map((value) => value - mean);
  const scale = 1 / Math.sqrt(inner(centred, centred) / x.length + norm.epsilon);
  return centred.map((value, i) => {
    const weight = norm.weight ? (values(norm.weight)[i] as number) : 1;
    return value * scale * weight + (norm.bias ? (values(norm.bias)[i] as number) : 0);
  });
}

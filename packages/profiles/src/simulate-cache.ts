import { CoppiceError } from "@coppice/core";
import { type CachePolicy, cacheHits, cachePolicies } from "./cache-policies.js";
import { checkTraceModel, type RoutingTrace, sliceTrace, traceTokens } from "./routing-trace.js";
import { type TraceUses, traceUses, useCounts } from "./trace-uses.js";

export interface CacheOptions {
  /** What each cache holds: a number of experts, or bytes of them. */
  readonly capacity: { readonly experts: number } | { readonly bytes: number };
  /** `layer`: a cache for each MoE layer; `global`: one for all layers. @default "layer" */
  readonly scope?: "layer" | "global";
  /** @default all; `static` only with `learn` */
  readonly policies?: readonly CachePolicy[];
  /**
   * What the list of `static` is made from: another trace, or the first half of this one's sequences, and then the second
   * half alone is tested, by all policies. `tested-part` learns from the tokens that it is tested on, which flatters it.
   */
  readonly learn?: RoutingTrace | "first-half" | "tested-part";
  /** Tokens after which a use counts half for `lfu`. @default 256 */
  readonly halfLife?: number;
  /** For predictions of speed. */
  readonly bandwidth?: Bandwidth;
}

/** Bytes per second. */
export interface Bandwidth {
  /** At which weights in memory are read for computing. */
  readonly memory: number;
  /** At which experts that are not in memory are loaded. */
  readonly storage: number;
}

/** One phase under one policy. */
export interface PhaseResult {
  readonly tokens: number;
  readonly uses: number;
  readonly hits: number;
  /** hits / uses; 1 without uses. */
  readonly hitRatio: number;
  /** Bytes loaded per token. */
  readonly missBytes: number;
}

export interface PolicyResult {
  readonly policy: CachePolicy;
  readonly prefill: PhaseResult;
  readonly decode: PhaseResult;
  /** Decoded tokens per second, where a bandwidth was given and tokens were decoded. */
  readonly speed?: Speed;
}

/** Tokens per second as bandwidths bound it. */
export interface Speed {
  /** When nothing is computed while experts are loaded. */
  readonly serial: number;
  /** When loading and computing overlap completely. */
  readonly overlapped: number;
}

export interface CacheSimulation {
  /** Sequences that were tested. */
  readonly sequences: number;
  /** What `static` learned from: "another trace" is one that the caller gave. */
  readonly learned: "nothing" | "another trace" | "first half" | "tested part";
  readonly policies: readonly PolicyResult[];
}

/**
 * Replays a trace against caches of experts. All begin empty, but the list of `static`, which is there from the start.
 * @throws COPPICE_USAGE for settings that make no sense; COPPICE_PROFILE_MODEL when `learn` is of another model
 */
export function simulateCache(trace: RoutingTrace, options: CacheOptions): CacheSimulation {
  const { capacity, scope = "layer", halfLife = 256, bandwidth, learn } = options;
  check(options);
  const half = trace.sequences.length >> 1;
  const tested = learn === "first-half" ? sliceTrace(trace, half, trace.sequences.length) : trace;
  const uses = traceUses(tested);
  const learned = learnedCounts(trace, half, uses, learn);
  const sizes = "experts" in capacity ? uses.bytes.map(() => 1) : uses.bytes;
  const size = "experts" in capacity ? capacity.experts : capacity.bytes;
  const policies = options.policies ?? cachePolicies.filter((policy) => policy !== "static" || learn);
  const caches =
    scope === "global"
      ? [{ own: uses.uses.map((_, i) => i), learned }]
      : usesByLayer(uses, trace.layers.length).map((own, layer) => ({
          own,
          learned: learned.map((count, item) => (uses.layers[item] === layer ? count : 0)),
        }));
  return {
    sequences: tested.sequences.length,
    learned: learnedName(learn),
    policies: policies.map((policy): PolicyResult => {
      const hits = new Uint8Array(uses.uses.length);
      for (const { own, learned } of caches) {
        const run = {
          sizes,
          capacity: size,
          uses: own.map((use) => uses.uses[use] as number),
          times: Float64Array.from(own, (use) => uses.times[use] as number),
        };
        cacheHits(policy, run, { halfLife, learned }).forEach((hit, i) => {
          hits[own[i] as number] = hit;
        });
      }
      return policyResult(policy, tested, uses, hits, bandwidth);
    }),
  };
}

/** Indices of the uses of each layer. */
function usesByLayer({ uses, layers }: TraceUses, count: number): Int32Array[] {
  const found = Array.from({ length: count }, () => [] as number[]);
  uses.forEach((item, use) => {
    found[layers[item] as number]?.push(use);
  });
  return found.map((own) => Int32Array.from(own));
}

function learnedName(learn: CacheOptions["learn"]): CacheSimulation["learned"] {
  if (learn === undefined) return "nothing";
  if (typeof learn !== "string") return "another trace";
  return learn === "first-half" ? "first half" : "tested part";
}

function learnedCounts(
  trace: RoutingTrace,
  half: number,
  tested: TraceUses,
  learn: CacheOptions["learn"],
): Float64Array {
  if (learn === undefined) return new Float64Array(tested.bytes.length);
  if (learn === "tested-part") return useCounts(tested);
  if (learn === "first-half") return useCounts(traceUses(sliceTrace(trace, 0, half)));
  checkTraceModel(learn, trace.model);
  return useCounts(traceUses(learn));
}

function policyResult(
  policy: CachePolicy,
  trace: RoutingTrace,
  { uses, bytes, decode }: TraceUses,
  hits: Uint8Array,
  bandwidth: Bandwidth | undefined,
): PolicyResult {
  const tokens = traceTokens(trace);
  const phase = (decoded: 0 | 1, count: number): PhaseResult => {
    let [used, found, missed] = [0, 0, 0];
    uses.forEach((item, i) => {
      if (decode[i] !== decoded) return;
      used++;
      if (hits[i]) found++;
      else missed += bytes[item] as number;
    });
    return {
      tokens: count,
      uses: used,
      hits: found,
      hitRatio: used === 0 ? 1 : found / used,
      missBytes: count === 0 ? 0 : missed / count,
    };
  };
  const result = { policy, prefill: phase(0, tokens.prefill), decode: phase(1, tokens.decode) };
  if (!bandwidth || tokens.decode === 0) return result;
  let read = trace.tokenBytes;
  uses.forEach((item, i) => {
    if (decode[i]) read += (bytes[item] as number) / tokens.decode;
  });
  const computing = read / bandwidth.memory;
  const loading = result.decode.missBytes / bandwidth.storage;
  const speed = { serial: 1 / (computing + loading), overlapped: 1 / Math.max(computing, loading) };
  return { ...result, speed };
}

function check({ capacity, halfLife = 1, bandwidth, policies, learn }: CacheOptions): void {
  const size = "experts" in capacity ? capacity.experts : capacity.bytes;
  const numbers = [
    ["the capacity", size, size >= 0],
    ["halfLife", halfLife, halfLife > 0],
    ["the bandwidth of memory", bandwidth?.memory, !bandwidth || bandwidth.memory > 0],
    ["the bandwidth of storage", bandwidth?.storage, !bandwidth || bandwidth.storage > 0],
  ] as const;
  const wrong = numbers.find(([, , right]) => !right);
  if (wrong) throw new CoppiceError("COPPICE_USAGE", `${wrong[0]} is ${wrong[1]}, expected a number above 0`);
  if (policies?.includes("static") && learn === undefined) {
    throw new CoppiceError("COPPICE_USAGE", "static needs something to learn its list from", {
      hint: "give another trace, or learn from the first half",
    });
  }
}

import type { DrawRule, TokenDraw } from "@coppice/core";
import { stepSource } from "./draw-digits-code.js";
import { chunkTokens, digits, drawVocabulary, drawWords, goals, mostPower } from "./draw-layout.js";
import { bestSource, peaksSource } from "./draw-peaks-code.js";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";

/** Most tokens of a vocabulary that `drawTokens` draws from. */
export const drawLimit = drawVocabulary;
/** What `drawTokens` writes for rows without a finite logit. */
export const noToken = 2 ** 32 - 1;

export interface DrawCall {
  /** [rows, vocab]; penalised in place. */
  readonly logits: GpuBuffer;
  readonly rows: number;
  /** At most `drawLimit`. */
  readonly vocab: number;
  readonly rule: DrawRule;
  /** Of `drawTables`. */
  readonly uniforms: GpuBuffer;
  readonly seen: GpuBuffer | undefined;
  /** [rows] u32, written. */
  readonly tokens: GpuBuffer;
  /** Of the sizes that `drawBytes` gives. */
  readonly work: { readonly peaks: GpuBuffer; readonly sums: GpuBuffer; readonly states: GpuBuffer };
}

/** Bytes of the work buffers of a `DrawCall`. */
export function drawBytes(rows: number, vocab: number): { peaks: number; sums: number; states: number } {
  return {
    peaks: 8 * rows * Math.ceil(vocab / chunkTokens),
    sums: 4 * rows * drawWords.sums,
    states: 4 * rows * drawWords.states,
  };
}

/**
 * Random numbers and seen tokens of some rows of a draw, as `drawTokens` reads them.
 * @returns `uniforms`: [rows], in units of 2^-32; `seen`: [rows, ceil(vocab / 32)], one bit per token; undefined: no penalty
 */
export function drawTables(
  { rule, uniforms, seen }: TokenDraw,
  from: number,
  rows: number,
  vocab: number,
): { uniforms: Uint32Array; seen: Uint32Array | undefined } {
  const numbers = Uint32Array.from(uniforms.subarray(from, from + rows), (uniform) => uniform * 2 ** 32);
  if (!seen || (rule.repetitionPenalty ?? 1) === 1) return { uniforms: numbers, seen: undefined };
  const words = Math.ceil(vocab / 32);
  const bits = new Uint32Array(rows * words);
  for (let row = 0; row < rows; row++) {
    for (const token of seen[from + row] ?? []) {
      const word = row * words + (token >>> 5);
      bits[word] = (bits[word] as number) | (1 << (token & 31));
    }
  }
  return { uniforms: numbers, seen: bits };
}

/**
 * Draws a token of every row, as `drawToken` of core does: after the repetition penalty, tokens lie by descending weight exp((logit - max)
 * / temperature) where top-k or top-p apply, ties by id, else by id. What each rule leaves is a part of this order from its beginning, so it
 * is known by its weight alone, and the token that is drawn is the one at a share of that weight. Such a place is found digit by
 * digit, of 10 bits: three of the weight's logarithm, then two of the id, by adding up weights and counts of all tokens that have
 * the digits found so far by the next one. No sort is needed, and the time does not depend on what the rule leaves.
 *
 * Weights are float32 and added up exactly, in integers, so that a device always gives the same token. From `drawToken` in float64 the place of
 * a token's end along [0, 1) differs by the errors of exp in float32, about 1e-6 (5e-6 under a penalty, whose quotients are float32 too);
 * weights below e^-29 of the largest, together less than 1e-7 of 2^18 tokens, are left out. A token differs where a random
 * number or top-p falls into such a gap.
 */
export function drawTokens(gpu: Gpu, call: DrawCall): void {
  const { logits, rows, vocab, rule, uniforms, seen, tokens, work } = call;
  const { temperature = 0, topK = vocab, topP = 1, minP = 0, repetitionPenalty: penalty = 1 } = rule;
  const { peaks, sums, states } = work;
  const { commands } = gpu;
  const chunks = Math.ceil(vocab / chunkTokens);
  const find = gpu.kernel(`draw-peaks ${seen !== undefined}`, () => peaksSource(seen !== undefined));
  const buffers = seen ? [logits, seen, peaks, sums] : [logits, peaks, sums];
  commands.dispatch(find, buffers, { vocab, chunks, penalty }, chunks, rows);
  if (temperature === 0) {
    const best = gpu.kernel("draw-best", () => bestSource);
    commands.dispatch(best, [peaks, tokens], { chunks }, rows);
    return;
  }
  const sorted = topK < vocab || topP < 1;
  const searches = [...(topK < vocab ? [goals.count] : []), ...(topP < 1 ? [goals.share] : []), goals.token];
  const own = sorted ? [...digits.key, ...digits.id] : digits.id;
  const shared = {
    vocab,
    chunks,
    top_k: Math.min(topK, vocab),
    top_p: Math.floor(Math.min(topP, 1 - 2 ** -32) * 2 ** 32),
    sorted: sorted ? 1 : 0,
    // The largest weight is 1 however small the temperature.
    scale: Math.min(1 / temperature, 2 ** 100),
    limit: minP > 0 ? Math.min(-Math.log(minP), mostPower) : mostPower,
  };
  const step = gpu.kernel("draw-step", () => stepSource);
  const bound = [logits, peaks, uniforms, sums, states, tokens];
  let last = { was: digits.none as number, goal: 0, begins: 0, first: 0 };
  let at = 0;
  for (const [search, goal] of searches.entries()) {
    for (const digit of own) {
      commands.dispatch(step, bound, { ...shared, ...last, step: at++, digit }, chunks, rows);
      last = { was: digit, goal, begins: digit === own[0] ? 1 : 0, first: search === 0 ? 1 : 0 };
    }
  }
  commands.dispatch(step, bound, { ...shared, ...last, step: at, digit: digits.none }, 1, rows);
}

import { type Plan, type RunAttention, type Runner, type RunResult, throwIfAborted } from "@coppice/core";
import { concat } from "./encode-prompt.js";
import { drawOf, type Sampler } from "./sampling.js";

/** What of a runner is needed to continue sequences. */
export type CachingRunner = Pick<Runner, "model" | "run" | "createCache" | "draws">;

export interface BatchRequest {
  /** Tokens to continue; none may be empty. */
  readonly prompts: readonly Int32Array[];
  readonly plan?: Plan | undefined;
  /** What attention is limited to in a cache for these of the sequences; default nothing. */
  readonly attention?: ((group: readonly number[]) => RunAttention) | undefined;
  /** Most new tokens of each sequence. A sequence also ends when the model's context is full. */
  readonly maxTokens: readonly number[];
  /**
   * Called for each new token of sequence `s`; `tokens` are the new ones so far, this one included.
   * @returns true to end the sequence with it
   */
  readonly done: (s: number, tokens: readonly number[]) => boolean;
  /** Draw the tokens of each sequence, all by the same rule. Default: the most likely ones. */
  readonly samplers?: readonly Sampler[];
  readonly signal?: AbortSignal | undefined;
}

/**
 * Continues sequences, side by side, with cached keys and values.
 * @returns the new tokens of every sequence
 */
export async function continueBatch(runner: CachingRunner, request: BatchRequest): Promise<number[][]> {
  const { prompts, plan, attention, maxTokens, done, samplers, signal } = request;
  const { contextLength: context, vocabSize } = runner.model;
  const outputs: number[][] = prompts.map(() => []);
  const length = (s: number) => (prompts[s]?.length ?? 0) + (outputs[s]?.length ?? 0);
  let live = prompts
    .map((_, s) => s)
    .filter((s) => (maxTokens[s] as number) > 0 && (prompts[s]?.length ?? 0) <= context);
  while (live.length > 0) {
    // A cache keeps all its sequences to the end, so once half of them are done the rest starts a new, smaller one.
    const group = live;
    const running = new Set(group);
    using cache = disposable(runner.createCache(group.length, attention?.(group)));
    let inputs = group.map((s) => concat(prompts[s] as Int32Array, outputs[s] as number[]));
    while (running.size * 2 > group.length || running.size === group.length) {
      throwIfAborted(signal, "generating");
      if (cache.value.lengths.some((held, i) => held + (inputs[i]?.length ?? 0) > context)) break;
      const own = samplers && group.map((s) => samplers[s] as Sampler);
      const result: RunResult = await runner.run({
        sequences: inputs,
        positions: inputs.map((input) => Int32Array.of(input.length - 1)),
        // Asking about some target returns the most likely token without copying all logits.
        ...(!own && { targets: inputs.map(() => Int32Array.of(0)) }),
        ...(own && runner.draws && { draw: drawOf(own) }),
        cache: cache.value,
        ...(plan && { plan }),
        ...(signal && { signal }),
      });
      inputs = group.map((s, i) => {
        if (!running.has(s)) return Int32Array.of(0);
        const token = tokenOf(result, i, own?.[i], vocabSize);
        const output = outputs[s] as number[];
        output.push(token);
        if (done(s, output) || output.length >= (maxTokens[s] as number) || length(s) > context) {
          running.delete(s);
        }
        return Int32Array.of(token);
      });
      if (running.size === 0) break;
    }
    live = [...running].filter((s) => length(s) <= context);
  }
  return outputs;
}

/** The token that follows sequence `i` of a run. */
function tokenOf(
  { logits, drawn, argmax }: RunResult,
  i: number,
  sampler: Sampler | undefined,
  vocabSize: number,
): number {
  if (!sampler) return argmax?.[i] ?? 0;
  if (drawn) return sampler.take(drawn[i] as number);
  return sampler.next((logits ?? new Float32Array(0)).subarray(i * vocabSize, (i + 1) * vocabSize));
}

function disposable<T extends { dispose(): void }>(value: T): Disposable & { readonly value: T } {
  return { value, [Symbol.dispose]: () => value.dispose() };
}

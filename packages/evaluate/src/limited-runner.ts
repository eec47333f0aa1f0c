import {
  type AttentionMasker,
  type AttentionPlan,
  CoppiceError,
  type RunAttention,
  type RunRequest,
  type RunResult,
  throwIfAborted,
} from "@coppice/core";
import type { CachingRunner } from "./continue-batch.js";
import type { RunnerPart } from "./counting-runner.js";
import type { EncodedTask } from "./encode-task.js";

/** What texts are evaluated and written with: a plan of how far heads see, or something that decides it text by text. */
export type TextAttention =
  | {
      /** A valid plan for the model. */
      readonly plan: AttentionPlan;
      readonly masker?: undefined;
    }
  | {
      /** Makes a masker for one text; see `AttentionMethod.masker`. */
      readonly masker: () => AttentionMasker;
      readonly plan?: undefined;
    };

/** What a cache for texts that will have these lengths is limited to. */
export function cacheAttention({ plan, masker }: TextAttention, lengths: readonly number[]): RunAttention {
  return masker ? { masker: masker() } : { plan, lengths };
}

/**
 * A runner whose runs over the sequences of a task say what the same texts say when they are written token by token: under a plan that is
 * resolved at the length of the whole sequence, or with a masker that chooses from the prompt alone what it sees, and
 * step by step what the answer sees. Texts without a prompt are run at once. Runs must have all layers under a masker.
 */
export function limitedRunner(
  runner: CachingRunner,
  attention: TextAttention | undefined,
  task: EncodedTask,
): RunnerPart {
  if (!attention) return runner;
  const { model } = runner;
  const { plan, masker } = attention;
  if (!masker) return { model, run: (request) => runner.run({ ...request, attention: { plan } }) };
  const promptTokens = new Map(
    task.samples.flatMap(({ sequences, promptTokens }) =>
      sequences.map(({ ids }) => [ids, promptTokens] as const),
    ),
  );
  return {
    model,
    async run(request) {
      const parts: RunResult[] = [];
      for (const s of request.sequences.keys()) {
        const prompt = promptTokens.get(request.sequences[s] as Int32Array) ?? 0;
        parts.push(...(await maskedRuns(runner, request, s, prompt, masker())));
      }
      return together(parts);
    },
  };
}

/** Runs one sequence of a request: its prompt at once, and what is behind it as generation would. */
async function maskedRuns(
  runner: CachingRunner,
  { sequences, positions, targets, plan, signal, from = 0, boundaries = [] }: RunRequest,
  s: number,
  promptTokens: number,
  masker: AttentionMasker,
): Promise<RunResult[]> {
  if (from > 0 || boundaries.length > 0) {
    throw new CoppiceError("COPPICE_INTERNAL", "runs with a masker have all layers and no boundaries");
  }
  const ids = sequences[s] as Int32Array;
  const asked = positions?.[s] ?? new Int32Array(0);
  const run = (begin: number, end: number, limits: Pick<RunRequest, "attention" | "cache">) => {
    const first = asked.findIndex((position) => position >= begin);
    const last = asked.findLastIndex((position) => position < end);
    const [a, b] = first < 0 || last < first ? [0, 0] : [first, last + 1];
    return runner.run({
      sequences: [ids.subarray(begin, end)],
      positions: [asked.subarray(a, b).map((position) => position - begin)],
      ...(targets && { targets: [(targets[s] as Int32Array).subarray(a, b)] }),
      ...limits,
      ...(plan && { plan }),
      ...(signal && { signal }),
    });
  };
  if (promptTokens === 0 || promptTokens === ids.length) {
    return [await run(0, ids.length, { attention: { masker } })];
  }
  const cache = runner.createCache(1, { masker });
  try {
    const results = [await run(0, promptTokens, { cache })];
    // Where single steps are nothing special, all of them are one run.
    const step = masker.decode ? 1 : ids.length - promptTokens;
    for (let at = promptTokens; at < ids.length; at += step) {
      throwIfAborted(signal, "evaluating an answer");
      results.push(await run(at, at + step, { cache }));
    }
    return results;
  } finally {
    cache.dispose();
  }
}

function together(parts: readonly RunResult[]): RunResult {
  const all = <A extends Float32Array | Int32Array>(
    make: new (length: number) => A,
    pick: (result: RunResult) => A | undefined,
  ): A | undefined => {
    const arrays = parts.map(pick).filter((array) => array !== undefined);
    if (arrays.length < parts.length) return undefined;
    const out = new make(arrays.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const array of arrays) {
      out.set(array, at);
      at += array.length;
    }
    return out;
  };
  const logits = all(Float32Array, (result) => result.logits);
  const targetLogProbs = all(Float32Array, (result) => result.targetLogProbs);
  const argmax = all(Int32Array, (result) => result.argmax);
  return {
    ...(logits && { logits }),
    ...(targetLogProbs && { targetLogProbs }),
    ...(argmax && { argmax }),
    boundaries: new Map(),
    tokenLayers: parts.reduce((sum, { tokenLayers }) => sum + tokenLayers, 0),
  };
}

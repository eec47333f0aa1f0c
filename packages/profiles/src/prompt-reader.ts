import { partialModel } from "@coppice/checkpoint";
import {
  type Backend,
  CoppiceError,
  createPlan,
  findExperts,
  type LoadRequest,
  type MoeLayer,
  moeLayers,
  type Runner,
} from "@coppice/core";
import { FullRouter } from "./full-router.js";
import { LogitSummer } from "./logit-summer.js";
import type { LogitSums } from "./task-statistic.js";

/** Reads prompts as far as the first MoE layer. */
export interface PromptReader extends AsyncDisposable {
  /**
   * Sums of the router logits of the first MoE layer over all tokens of the sequences.
   * @throws those of `Runner.run`
   */
  sums(sequences: readonly Int32Array[], signal?: AbortSignal): Promise<LogitSums>;
  dispose(): Promise<void>;
}

/**
 * Loads the layers up to the first MoE layer. What an MoE block reads does not depend on its own experts, so only as many
 * of that layer are loaded as the router needs to run at all.
 * @throws those of `Backend.load`; COPPICE_FAMILY_UNSUPPORTED for models without MoE layers
 */
export async function openPromptReader(
  backend: Backend,
  { model, weights, signal }: Pick<LoadRequest, "model" | "weights" | "signal">,
): Promise<PromptReader> {
  const [first] = moeLayers(model);
  if (!first) throw new CoppiceError("COPPICE_FAMILY_UNSUPPORTED", "the model has no MoE layers");
  const router = await FullRouter.read(first, weights, signal);
  const plan = createPlan(model, [{ layer: first.index, experts: fewestExperts(first) }]);
  const { model: small, weights: reader } = partialModel(model, weights, plan);
  const layers = { from: 0, to: first.index + 1 };
  const runner = await backend.load({ model: small, weights: reader, layers, ...(signal && { signal }) });
  const dispose = () => runner.dispose();
  return {
    sums: (sequences, stop) => sumsOf(runner, router, sequences, stop),
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

/** Tokens of one run, which bounds memory; a longer sequence runs alone. */
const tokenBudget = 4_096;

async function sumsOf(
  runner: Runner,
  router: FullRouter,
  sequences: readonly Int32Array[],
  signal: AbortSignal | undefined,
): Promise<LogitSums> {
  const summer = new LogitSummer(router.experts);
  for (let from = 0; from < sequences.length; ) {
    let to = from;
    for (let tokens = 0; to < sequences.length; to++) {
      tokens += sequences[to]?.length ?? 0;
      if (to > from && tokens > tokenBudget) break;
    }
    await runner.run({
      sequences: sequences.slice(from, to),
      to: router.layer + 1,
      tap: {
        fields: ["input"],
        onLayer({ layer, input, tokens }) {
          if (input && layer === router.layer) summer.add(router.logits(input, tokens));
        },
      },
      ...(signal && { signal }),
    });
    from = to;
  }
  return summer.sums;
}

function fewestExperts({ index, feedForward }: MoeLayer): number[] {
  const { router, experts } = feedForward;
  const alike = new Float64Array(experts.length);
  for (let keep = router.topK; keep < experts.length; keep++) {
    const found = findExperts(feedForward, alike, keep, index);
    if (found) return found;
  }
  return experts.map((_, expert) => expert);
}

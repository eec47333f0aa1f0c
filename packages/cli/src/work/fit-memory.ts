import { predictOutput } from "@coppice/checkpoint";
import {
  CoppiceError,
  createPlan,
  isCoppiceError,
  type MoeModel,
  moeLayers,
  selectExperts,
  withTopK,
} from "@coppice/core";
import { formatBytes } from "@coppice/report";
import { checkKeepFits } from "./check-keep-fits.js";
import type { OpenModel } from "./open-model.js";

/** The most experts per layer that fit a memory limit. */
export interface FittingExperts {
  /** The same in every layer, as every stock config can say. */
  readonly keep: number;
  /** Bytes of all weights of the checkpoint that keeps so many. */
  readonly bytes: number;
  /** The limit. */
  readonly limit: number;
  /** Experts per token, where the model's own number had to become smaller for anything to fit. */
  readonly topK?: number;
}

interface FitRequest {
  readonly limit: number;
  /** Undefined: the model's own, or as many fewer as are needed to fit. */
  readonly topK: number | undefined;
  readonly signal: AbortSignal;
}

/**
 * Finds how many experts every layer can keep so that the weights of the written checkpoint take at most `limit` bytes, and
 * how many run per token: a layer keeps at least as many as that, so fewer run where nothing fits otherwise. Which experts
 * are kept, and what is merged into them, changes no size.
 * @throws COPPICE_PLAN_KEEP with the least possible size when nothing fits; the errors of `predictOutput`
 */
export async function fitMemory(opened: OpenModel, request: FitRequest): Promise<FittingExperts> {
  const layers = moeLayers(opened.checkpoint.model);
  const own = Math.max(...layers.map(({ feedForward }) => feedForward.router.topK));
  const canChange = layers.every(({ feedForward }) => feedForward.router.order !== "sparsemixer");
  if (request.topK !== undefined || !canChange) return fitExperts(opened, request);
  for (let topK = own; topK > 1; topK--) {
    try {
      const found = await fitExperts(opened, { ...request, topK: topK === own ? undefined : topK });
      return topK === own ? found : { ...found, topK };
    } catch (error) {
      if (!isCoppiceError(error) || error.code !== "COPPICE_PLAN_KEEP") throw error;
    }
  }
  return {
    ...(await fitExperts(opened, { ...request, topK: own === 1 ? undefined : 1 })),
    ...(own > 1 && { topK: 1 }),
  };
}

/** As `fitMemory`, with a top-k that is given. */
async function fitExperts({ checkpoint }: OpenModel, request: FitRequest): Promise<FittingExperts> {
  const { model } = checkpoint;
  const { limit, topK, signal } = request;
  const most = Math.min(...moeLayers(model).map(({ feedForward }) => feedForward.experts.length));
  const counts = Array.from({ length: most }, (_, i) => i + 1).filter((keep) =>
    isPossible(model, keep, topK),
  );
  const bytesOf = async (keep: number) =>
    (await predictOutput(checkpoint, anyPlan(model, keep, topK), { signal })).tensorBytes;
  const [least] = counts;
  if (least === undefined) {
    // Says why: a top-k that no number of experts serves.
    checkKeepFits(model, most, topK);
    throw new CoppiceError("COPPICE_PLAN_KEEP", "no number of experts fits all layers");
  }
  let best = { keep: least, bytes: await bytesOf(least) };
  if (best.bytes > limit) {
    throw new CoppiceError(
      "COPPICE_PLAN_KEEP",
      `nothing fits ${limit} bytes: with ${least} experts in every layer, the fewest possible, the weights take ` +
        `${best.bytes} bytes (${formatBytes(best.bytes)})`,
      {
        hint: `give at least --memory ${best.bytes}${topK === 1 ? "" : ", or a smaller --top-k where that is what needs so many experts"}`,
        details: { limit, least: best.bytes, keep: least },
      },
    );
  }
  // Sizes ascend with the number of experts.
  for (let low = 1, high = counts.length - 1; low <= high; ) {
    const middle = (low + high) >> 1;
    const keep = counts[middle] as number;
    const bytes = await bytesOf(keep);
    if (bytes <= limit) {
      best = { keep, bytes };
      low = middle + 1;
    } else high = middle - 1;
  }
  return { ...best, limit };
}

function isPossible(model: MoeModel, keep: number, topK: number | undefined): boolean {
  try {
    checkKeepFits(model, keep, topK);
    return true;
  } catch (error) {
    if (isCoppiceError(error)) return false;
    throw error;
  }
}

function anyPlan(model: MoeModel, keep: number, topK: number | undefined) {
  return createPlan(
    model,
    moeLayers(model).map((layer) => {
      const { index, feedForward } = withTopK(layer, topK);
      const scores = new Float64Array(feedForward.experts.length);
      return {
        layer: index,
        experts: selectExperts(feedForward, scores, keep, index),
        ...(topK !== undefined && { topK }),
      };
    }),
  );
}

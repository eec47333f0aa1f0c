import { type AttentionPlanRequest, CoppiceError, type Runner, type WeightReader } from "@coppice/core";

/** @throws COPPICE_USAGE when something that the method needs is missing */
export function providedFor(
  method: string,
  { runner, weights }: AttentionPlanRequest,
): { readonly runner: Runner; readonly weights: WeightReader } {
  if (runner && weights) return { runner, weights };
  throw new CoppiceError("COPPICE_USAGE", `${method} needs a runner and the weights of the model`);
}

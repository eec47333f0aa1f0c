import { createRegistry, type LayerPlan, type MergeRequest, type MergerPlugins, Rng } from "@coppice/core";
import { average, dern, hcSmoe, logitClusters, mSmoe, ream } from "@coppice/merging";

const registry = createRegistry([mSmoe, logitClusters, hcSmoe, ream, dern, average]);

export async function merge<N extends keyof MergerPlugins>(
  name: N,
  request: Omit<MergeRequest, "rng">,
  options: MergerPlugins[N] = {} as MergerPlugins[N],
): Promise<LayerPlan[]> {
  const merger = await registry.create("merger", name, options as never, undefined);
  return merger.merge({ rng: Rng.fromSeed(1), ...request });
}

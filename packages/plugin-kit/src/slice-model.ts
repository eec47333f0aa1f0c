import {
  type DecoderLayer,
  dtypeBytes,
  elementCount,
  type GatedMlpSpec,
  type LayerPlan,
  type MoeSpec,
  type Plan,
  roundToDtype,
  type TensorRef,
} from "@coppice/core";
import { type MemoryModel, memoryModel } from "./memory-model.js";

/**
 * The smaller model that `plan` describes, made by really cutting router rows and experts and really summing
 * merged weights: what a backend must compute when it runs the plan on the whole model.
 * @throws Error for a router map, which no smaller model can express
 */
export function sliceModel(source: MemoryModel, plan: Plan): MemoryModel {
  const tensors = new Map(source.tensors);
  const plans = new Map(plan.layers.map((layer) => [layer.layer, layer]));
  const layers = source.model.layers.map((layer): DecoderLayer => {
    const layerPlan = plans.get(layer.index);
    if (!layerPlan || layer.feedForward.kind !== "moe") return layer;
    return { ...layer, feedForward: sliceLayer(layer.feedForward, layerPlan, tensors) };
  });
  const fingerprint = `${source.model.fingerprint}/${JSON.stringify(plan.layers)}`;
  return memoryModel({ ...source.model, fingerprint, layers }, tensors);
}

function sliceLayer(spec: MoeSpec, plan: LayerPlan, tensors: Map<string, Float32Array>): MoeSpec {
  if (plan.routerMap) throw new Error(`layer ${plan.layer} has a router map, which cannot be sliced`);
  const values = (ref: TensorRef) => tensors.get(ref.name) as Float32Array;
  const add = (like: TensorRef, suffix: string, shape: readonly number[], data: Float32Array): TensorRef => {
    const name = `${like.name}.${suffix}`;
    tensors.set(name, data);
    return { ...like, name, shape, end: like.begin + elementCount(shape) * dtypeBytes[like.dtype] };
  };
  const { weight } = spec.router;
  const hidden = weight.shape[1] as number;
  const rows = plan.experts.flatMap((expert) => [
    ...values(weight).subarray(expert * hidden, (expert + 1) * hidden),
  ]);
  const router = add(weight, "sliced", [plan.experts.length, hidden], Float32Array.from(rows));

  const merged = (slot: number, row: readonly number[]): GatedMlpSpec => {
    const first = spec.experts[0] as GatedMlpSpec;
    const part = (name: "gate" | "up" | "down") => {
      const sums = Float32Array.from(values(first[name]), (_, i) =>
        row.reduce(
          (sum, factor, j) => sum + factor * (values((spec.experts[j] as GatedMlpSpec)[name])[i] as number),
          0,
        ),
      );
      roundToDtype(sums, first[name].dtype);
      return add(first[name], `merged.${slot}`, first[name].shape, sums);
    };
    return { ...first, gate: part("gate"), up: part("up"), down: part("down") };
  };
  return {
    ...spec,
    router: { ...spec.router, weight: router, topK: plan.topK ?? spec.router.topK },
    experts: plan.merge
      ? plan.merge.map((row, slot) => merged(slot, row))
      : plan.experts.map((expert) => spec.experts[expert] as GatedMlpSpec),
  };
}

import {
  type DecoderLayer,
  dtypeBytes,
  elementCount,
  groupsAfter,
  type LayerPlan,
  type MlpSpec,
  type MoeSpec,
  type Plan,
  type RouterSpec,
  type TensorRef,
} from "@coppice/core";
import { type MemoryModel, memoryModel } from "./memory-model.js";
import { mlpParts, routerValues, slotValues } from "./slow-plan.js";

/**
 * The smaller model that `plan` describes, made by really cutting the router's rows, biases, corrections and groups and
 * the experts, and really summing merged weights and biases: what a backend must compute when it runs the plan on the
 * whole model. Its router brings the plan's rule for skipped experts along. Experts of routers with groups are put in ascending order, as groups are consecutive experts.
 * @throws Error for a router map, which no smaller model can express
 * @throws COPPICE_PLAN_GROUPS when the groups that are left differ in size
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
  const order = plan.experts.map((_, slot) => slot);
  if (spec.router.groups) order.sort((a, b) => (plan.experts[a] as number) - (plan.experts[b] as number));
  const kept = order.map((slot) => plan.experts[slot] as number);

  const rowsOf = (ref: TensorRef, all: Float32Array): TensorRef => {
    const { dtype, file, begin } = ref;
    const size = all.length / spec.experts.length;
    const data = kept.flatMap((expert) => [...all.subarray(expert * size, (expert + 1) * size)]);
    const shape = [kept.length, ...ref.shape.slice(1)];
    const name = `${ref.name}.sliced`;
    tensors.set(name, Float32Array.from(data));
    return { name, dtype, shape, file, begin, end: begin + elementCount(shape) * dtypeBytes[dtype] };
  };
  const merged = (slot: number): MlpSpec => {
    const first = spec.experts[0] as MlpSpec;
    const parts = mlpParts.flatMap((part): [string, TensorRef][] => {
      const ref = first[part];
      const sums = slotValues(spec, plan, slot, part, values);
      if (!ref || !sums) return [];
      const name = `${ref.name}.merged.${slot}`;
      tensors.set(name, sums);
      return [[part, { ...ref, name }]];
    });
    return { ...first, ...Object.fromEntries(parts) };
  };

  const { groups: _, ...rest } = spec.router;
  const groups = groupsAfter(spec.router, kept, plan.layer);
  const rows = routerValues(rest, plan, values);
  const skip = plan.skip ?? rest.skip;
  const router: RouterSpec = {
    ...rest,
    weight: rowsOf(rest.weight, rows.weight),
    ...(rest.bias && rows.bias && { bias: rowsOf(rest.bias, rows.bias) }),
    ...(rest.correction && rows.correction && { correction: rowsOf(rest.correction, rows.correction) }),
    ...(groups && { groups }),
    topK: plan.topK ?? rest.topK,
    ...(skip && { skip }),
  };
  const experts = order.map((slot) =>
    plan.merge || plan.units?.[slot] || plan.down !== undefined
      ? merged(slot)
      : (spec.experts[plan.experts[slot] as number] as MlpSpec),
  );
  return { ...spec, router, experts };
}

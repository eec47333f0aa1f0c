import {
  dtypeBytes,
  type GatedMlpSpec,
  type LayerPlan,
  type MoeLayer,
  moeLayers,
  type Plan,
  type TensorRef,
} from "@coppice/core";
import { tensorName } from "../families/family.js";
import type { LoadedCheckpoint } from "../load.js";
import type { SourceCache } from "../source-cache.js";
import { type Content, MergeScratch, mergeContent, rangeContent } from "./content.js";
import type { OutputTensor } from "./shards.js";

const roles = ["gate", "up", "down"] as const satisfies readonly (keyof GatedMlpSpec)[];
type Role = (typeof roles)[number];

/**
 * The tensors of the checkpoint that `plan` (exportable) makes, in the order of the files they come from, so that
 * reading stays sequential. Untouched tensors and kept experts are byte ranges and are never decoded.
 */
export function outputTensors(checkpoint: LoadedCheckpoint, plan: Plan): OutputTensor[] {
  const { model, sources, detected, tensors } = checkpoint;
  const scratch = new MergeScratch();
  const plans = new Map(plan.layers.map((layer) => [layer.layer, layer]));
  const replaced = new Set<string>();
  const placed: { tensor: OutputTensor; after: TensorRef }[] = [];
  for (const layer of moeLayers(model)) {
    const layerPlan = plans.get(layer.index);
    if (!layerPlan) continue;
    const { router, experts } = layer.feedForward;
    const { layout } = detected;
    replaced.add(router.weight.name);
    placed.push({ tensor: routerTensor(sources, router.weight, layerPlan), after: router.weight });
    if (layout.kind === "separate") {
      for (const [index, expert] of experts.entries()) {
        for (const role of roles) replaced.add(tensorName(layout.experts[role], layer.index, index));
        const slot = layerPlan.experts.indexOf(index);
        if (slot < 0) continue;
        for (const role of roles) {
          const name = tensorName(layout.experts[role], layer.index, slot);
          const { dtype, shape } = expert[role];
          const contents = [slotContent(sources, scratch, layer, layerPlan, slot, role, name)];
          placed.push({ tensor: { name, dtype, shape, contents }, after: expert[role] });
        }
      }
    } else {
      for (const [pattern, parts] of [
        [layout.gateUp, ["gate", "up"]],
        [layout.down, ["down"]],
      ] as const) {
        const name = tensorName(pattern, layer.index);
        const stack = tensors.get(name) as TensorRef;
        replaced.add(name);
        const contents = layerPlan.experts.flatMap((_, slot) =>
          parts.map((role) => slotContent(sources, scratch, layer, layerPlan, slot, role, name)),
        );
        const shape = [layerPlan.experts.length, ...stack.shape.slice(1)];
        placed.push({ tensor: { name, dtype: stack.dtype, shape, contents }, after: stack });
      }
    }
  }
  for (const ref of tensors.values()) {
    if (replaced.has(ref.name)) continue;
    const contents = [rangeContent(sources, ref.file, ref.begin, ref.end)];
    placed.push({ tensor: { name: ref.name, dtype: ref.dtype, shape: ref.shape, contents }, after: ref });
  }
  placed.sort((a, b) => compare(a.after.file, b.after.file) || a.after.begin - b.after.begin);
  return placed.map(({ tensor }) => tensor);
}

/** Rows of the kept experts, in slot order; neighbouring rows are read together. */
function routerTensor(sources: SourceCache, router: TensorRef, plan: LayerPlan): OutputTensor {
  const [, ...rest] = router.shape;
  const rowBytes = rest.reduce((product, size) => product * size, dtypeBytes[router.dtype]);
  const contents: Content[] = [];
  for (let slot = 0; slot < plan.experts.length; ) {
    const row = plan.experts[slot] as number;
    let rows = 1;
    while (plan.experts[slot + rows] === row + rows) rows++;
    const begin = router.begin + row * rowBytes;
    contents.push(rangeContent(sources, router.file, begin, begin + rows * rowBytes));
    slot += rows;
  }
  return { name: router.name, dtype: router.dtype, shape: [plan.experts.length, ...rest], contents };
}

/** One matrix of one slot: the kept expert's own bytes, or the merge of several experts. */
function slotContent(
  sources: SourceCache,
  scratch: MergeScratch,
  layer: MoeLayer,
  plan: LayerPlan,
  slot: number,
  role: Role,
  name: string,
): Content {
  const { experts } = layer.feedForward;
  const own = (experts[plan.experts[slot] as number] as GatedMlpSpec)[role];
  const used = experts
    .map((expert, index) => ({ ref: expert[role], coefficient: coefficientOf(plan, slot, index) }))
    .filter(({ coefficient }) => coefficient !== 0);
  const [only] = used;
  if (used.length === 1 && only?.coefficient === 1) {
    return rangeContent(sources, only.ref.file, only.ref.begin, only.ref.end);
  }
  return mergeContent(
    sources,
    scratch,
    used.map(({ ref }) => ref),
    used.map(({ coefficient }) => coefficient),
    own,
    name,
  );
}

function coefficientOf(plan: LayerPlan, slot: number, expert: number): number {
  if (plan.merge) return plan.merge[slot]?.[expert] as number;
  return plan.experts[slot] === expert ? 1 : 0;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

import { downDelta, type LayerPlan, type UnitSource } from "@coppice/core";
import type { ExpertTensors, UnitPlaces } from "../families/expert-tensors.js";

/** One place for an expert in the smaller layer; what is computed is stored in the form of `expert`. */
export type ExpertSlot =
  | { readonly kind: "expert"; readonly expert: number }
  | {
      readonly kind: "merge";
      readonly expert: number;
      readonly experts: readonly number[];
      readonly coefficients: readonly number[];
    }
  /** Put together unit by unit; tensors in which no units lie are those of `rest`. */
  | {
      readonly kind: "units";
      readonly expert: number;
      readonly units: readonly UnitSource[];
      readonly rest: LinearSlot;
    }
  /** As `rest`, but for its down projection. */
  | {
      readonly kind: "changed";
      readonly expert: number;
      readonly rest: MergedSlot;
      /** What is added to the down projection before it is rounded, [hidden, width]; decoded at every call. */
      delta(): Float32Array;
    }
  /** Never chosen; there to give all layers the same number of experts. */
  | { readonly kind: "pad" };

export type LinearSlot = Extract<ExpertSlot, { kind: "expert" | "merge" }>;
export type MergedSlot = Extract<ExpertSlot, { kind: "expert" | "merge" | "units" }>;

/** A slot that holds an expert of the plan. */
export type OwnSlot = Exclude<ExpertSlot, { kind: "pad" }>;

/** The slots of a layer in the order of its plan. */
export function slotsOf(plan: LayerPlan): OwnSlot[] {
  const { experts, merge, units } = plan;
  return experts.map((expert, slot): OwnSlot => {
    const linear = linearSlot(expert, merge?.[slot]);
    const own = units?.[slot];
    const rest: MergedSlot = own ? { kind: "units", expert, units: own, rest: linear } : linear;
    const delta = () => downDelta(plan, slot);
    // What is decoded here is not kept: a layer's deltas may be as large as its experts.
    return delta() ? { kind: "changed", expert, rest, delta: delta as () => Float32Array } : rest;
  });
}

function linearSlot(expert: number, row: readonly number[] | undefined): LinearSlot {
  if (!row) return { kind: "expert", expert };
  const used = row.flatMap((coefficient, from) => (coefficient === 0 ? [] : [{ from, coefficient }]));
  const [only] = used;
  // With a single coefficient of 1 the merge is that expert itself, in its own form.
  if (used.length === 1 && only?.coefficient === 1 && only.from === expert) return { kind: "expert", expert };
  return {
    kind: "merge",
    expert,
    experts: used.map(({ from }) => from),
    coefficients: used.map(({ coefficient }) => coefficient),
  };
}

/**
 * The slots of a set of experts. Hidden units of a layer for multi-token prediction have nothing to do with those of its
 * decoder layer by which a plan aligns them and changes what they add, so there such a slot is its expert unchanged.
 */
export function slotsIn(
  set: Pick<ExpertTensors, "isMtp">,
  slots: readonly ExpertSlot[],
): readonly ExpertSlot[] {
  if (!set.isMtp) return slots;
  return slots.map((slot) => {
    const rest = slot.kind === "changed" ? slot.rest : slot;
    return rest.kind === "units" ? { kind: "expert", expert: rest.expert } : rest;
  });
}

/** What a slot is in one tensor of its experts: changes touch down alone, and units none in which they do not lie. */
export function slotFor<T extends ExpertSlot>(slot: T, units: UnitPlaces | undefined): T | MergedSlot {
  const rest = slot.kind === "changed" && !isDown(units) ? slot.rest : slot;
  return rest.kind === "units" && !units ? rest.rest : rest;
}

/** Whether a tensor is the weight of down, or scales of it. */
export function isDown(units: UnitPlaces | undefined): boolean {
  return units?.factors === "columns";
}

/** The experts that a slot is computed from. */
export function sourcesOf(slot: OwnSlot): readonly number[] {
  if (slot.kind === "changed") return sourcesOf(slot.rest);
  if (slot.kind === "units") return slot.units.map(({ expert }) => expert);
  return slot.kind === "merge" ? slot.experts : [slot.expert];
}

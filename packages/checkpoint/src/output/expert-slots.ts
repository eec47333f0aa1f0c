import type { LayerPlan, UnitSource } from "@coppice/core";
import type { ExpertTensors } from "../families/expert-tensors.js";

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
  /** Never chosen; there to give all layers the same number of experts. */
  | { readonly kind: "pad" };

export type LinearSlot = Extract<ExpertSlot, { kind: "expert" | "merge" }>;

/** A slot that holds an expert of the plan. */
export type OwnSlot = Exclude<ExpertSlot, { kind: "pad" }>;

/** The slots of a layer in the order of its plan. */
export function slotsOf({ experts, merge, units }: LayerPlan): OwnSlot[] {
  return experts.map((expert, slot): OwnSlot => {
    const rest = linearSlot(expert, merge?.[slot]);
    const own = units?.[slot];
    return own ? { kind: "units", expert, units: own, rest } : rest;
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
 * decoder layer by which a plan aligns them, so there such a slot is its expert unchanged.
 */
export function slotsIn(
  set: Pick<ExpertTensors, "isMtp">,
  slots: readonly ExpertSlot[],
): readonly ExpertSlot[] {
  if (!set.isMtp) return slots;
  return slots.map((slot) => (slot.kind === "units" ? { kind: "expert", expert: slot.expert } : slot));
}

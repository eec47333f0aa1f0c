import type { MoeSpec, Routing } from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { TokenGroups } from "./group-tokens.js";
import type { UnitMemory } from "./layer-memory.js";
import type { Runtime } from "./sessions.js";
import type { MlpWeights } from "./weights.js";

/** Reads and extends the expert outputs of a memory under one plan. */
export interface RememberedOutputs {
  isKnown(slot: number, token: number): boolean;
  /** Whether some of the outputs that are computed are to be kept. */
  isWorthKeeping(groups: TokenGroups): boolean;
  /** [K, hidden] */
  known(runtime: Runtime, groups: TokenGroups, routing: Routing): Tensor;
  /** @param outputs those of `known`, and behind them those of `rows` */
  keep(groups: TokenGroups, outputs: Float32Array): void;
}

/**
 * Outputs of slots that are an expert of the model, unchanged: those of merged experts belong to one plan. Undefined where
 * outputs depend on gate weights, and so on the whole of the plan.
 */
export function rememberedOutputs(
  memory: UnitMemory,
  layer: {
    readonly spec: MoeSpec;
    readonly experts: { readonly slots: readonly MlpWeights[] };
    readonly originals: readonly MlpWeights[];
    readonly normed: Tensor;
  },
): RememberedOutputs | undefined {
  if (layer.spec.router.scalesInput) return undefined;
  const hidden = layer.normed.dims[1] as number;
  /** The expert that each slot is, -1 for none. */
  const experts = layer.experts.slots.map((slot) => layer.originals.indexOf(slot));
  const expertOf = (slot: number) => experts[slot] as number;
  return {
    isKnown: (slot, token) => expertOf(slot) >= 0 && memory.output(expertOf(slot), token) !== undefined,
    isWorthKeeping: ({ used }) => used.some((slot) => expertOf(slot) >= 0),
    known({ Tensor }, groups, { slots, topK }) {
      const values = new Float32Array(groups.known.length * hidden);
      for (const [place, choice] of groups.known.entries()) {
        const expert = expertOf(slots[choice] as number);
        values.set(memory.output(expert, Math.floor(choice / topK)) as Float32Array, place * hidden);
      }
      return new Tensor("float32", values, [groups.known.length, hidden]);
    },
    keep({ used, sizes, rows, known }, outputs) {
      let row = 0;
      for (const [i, slot] of used.entries()) {
        const [begin, end] = [row, row + (sizes[i] as number)];
        row = end;
        if (expertOf(slot) < 0) continue;
        const at = (known.length + begin) * hidden;
        const block = outputs.slice(at, at + (end - begin) * hidden);
        for (let r = begin; r < end; r++) {
          // The second of two equal rows says nothing new.
          if (r > begin && rows[r] === rows[r - 1]) continue;
          memory.keepOutput(
            expertOf(slot),
            rows[r] as number,
            block.subarray((r - begin) * hidden, (r - begin + 1) * hidden),
          );
        }
      }
    },
  };
}

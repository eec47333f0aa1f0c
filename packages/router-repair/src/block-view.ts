import {
  type LayerPlan,
  type LayerSample,
  type RouterSpec,
  type Routing,
  routeTokens,
  skipped,
} from "@coppice/core";
import type { SlotMixes } from "./slot-mixes.js";

/**
 * What the routed experts of a block put out for a sample of tokens, and how far another routing of its slots is from it.
 *
 * With y_t = Σ_j g_j f_j(x_t) the output of the whole block, G = [⟨f_i, f_j⟩] and slots that put out M f (`slotMixes`), gate
 * weights a of the slots miss it by
 *
 *     e_t(a) = ‖y_t - aᵀ M f‖² = c - 2 bᵀa + aᵀ H a,   H = M G Mᵀ,  b = M G g,  c = gᵀ G g
 *
 * which is dᵀ G d with d = g - Mᵀ a. So the error of any router follows without running an expert.
 */
export class BlockView {
  readonly tokens: number;
  readonly slots: number;
  /** H, [tokens, slots, slots]. */
  readonly grams: Float64Array;
  /** b, [tokens, slots]. */
  readonly wanted: Float64Array;
  /** c, [tokens]: squared norms of the block's outputs. */
  readonly norms: Float64Array;
  readonly router: RouterSpec;
  readonly plan: LayerPlan;

  /** @param correction of all original experts */
  constructor(
    router: RouterSpec,
    plan: LayerPlan,
    { rows }: SlotMixes,
    { logits, grams }: Required<Pick<LayerSample, "logits" | "grams">>,
    correction: Float32Array | undefined,
  ) {
    const experts = router.weight.shape[0] as number;
    this.router = router;
    this.plan = plan;
    this.tokens = logits.length / experts;
    this.slots = rows.length;
    this.grams = new Float64Array(this.tokens * this.slots ** 2);
    this.wanted = new Float64Array(this.tokens * this.slots);
    this.norms = new Float64Array(this.tokens);
    const full = routeTokens(logits, this.tokens, router, { correction });
    const sparse = rows.map((row): SparseRow => row.flatMap((share, j) => (share === 0 ? [] : [[j, share]])));
    const mixed = new Float64Array(experts);
    for (let t = 0; t < this.tokens; t++) {
      const gram = grams.subarray(t * experts * experts, (t + 1) * experts * experts);
      const gates = expertGates(full, t, experts);
      // G g, [experts]
      const image = Float64Array.from({ length: experts }, (_, i) =>
        gates.reduce(
          (sum, gate, j) => (gate === 0 ? sum : sum + gate * (gram[i * experts + j] as number)),
          0,
        ),
      );
      this.norms[t] = gates.reduce((sum, gate, i) => sum + gate * (image[i] as number), 0);
      for (let i = 0; i < this.slots; i++) {
        // Row i of M G, then of M G Mᵀ.
        mixed.fill(0);
        let wanted = 0;
        for (const [j, share] of sparse[i] as SparseRow) {
          wanted += share * (image[j] as number);
          for (let l = 0; l < experts; l++) {
            mixed[l] = (mixed[l] as number) + share * (gram[j * experts + l] as number);
          }
        }
        this.wanted[t * this.slots + i] = wanted;
        for (let k = 0; k < this.slots; k++) {
          let sum = 0;
          for (const [l, share] of sparse[k] as SparseRow) sum += share * (mixed[l] as number);
          this.grams[(t * this.slots + i) * this.slots + k] = sum;
        }
      }
    }
  }

  /**
   * Routes all tokens among the slots.
   * @param logits [tokens, slots]
   * @param correction [slots]
   */
  route(logits: Float32Array, correction: Float32Array | undefined): Routing {
    return routeTokens(logits, this.tokens, this.router, { plan: this.plan, correction });
  }

  /** As `route`, and nothing is skipped. */
  choose(logits: Float32Array, correction: Float32Array | undefined): Routing {
    const plan = { ...this.plan, skip: { rule: "ratio", threshold: 0 } } as const;
    return routeTokens(logits, this.tokens, this.router, { plan, correction });
  }

  /** e_t of every token under a routing, [tokens]. */
  errors({ topK, slots, gates }: Routing): Float64Array {
    const out = new Float64Array(this.tokens);
    for (let t = 0; t < this.tokens; t++) {
      let error = this.norms[t] as number;
      for (let k = t * topK; k < (t + 1) * topK; k++) {
        const slot = slots[k] as number;
        const gate = gates[k] as number;
        if (slot === skipped || gate === 0) continue;
        let image = -2 * (this.wanted[t * this.slots + slot] as number);
        for (let other = t * topK; other < (t + 1) * topK; other++) {
          const second = slots[other] as number;
          if (second === skipped) continue;
          image +=
            (gates[other] as number) * (this.grams[(t * this.slots + slot) * this.slots + second] as number);
        }
        error += gate * image;
      }
      // Of an exact match rounding may leave less than nothing.
      out[t] = Math.max(0, error);
    }
    return out;
  }
}

/** Experts and their shares in a slot. */
type SparseRow = readonly (readonly [expert: number, share: number])[];

/** Gate weights of one token by expert, [experts]. */
function expertGates({ topK, slots, gates }: Routing, token: number, experts: number): Float64Array {
  const out = new Float64Array(experts);
  for (let k = token * topK; k < (token + 1) * topK; k++) {
    const expert = slots[k] as number;
    if (expert !== skipped) out[expert] = (out[expert] as number) + (gates[k] as number);
  }
  return out;
}

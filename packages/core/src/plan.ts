/** Version of the plan file that this package writes and reads. */
export const planVersion = 1;

/** Which model a plan was made for; compared before the plan is used. */
export interface PlanModel {
  readonly family: string;
  readonly fingerprint: string;
}

/**
 * What becomes of the experts of one layer. Slot i of the smaller layer holds one expert.
 *
 * Routing is that of the family over the kept router rows: logits of dropped experts do not exist
 * (equal to setting them to -infinity).
 */
export interface LayerPlan {
  /** Index of the decoder layer. */
  readonly layer: number;
  /** Original experts whose router rows are kept, all different; slot i answers to router row `experts[i]`. */
  readonly experts: readonly number[];
  /**
   * Expert-merging matrix [slots][original experts] (W_EM of EEP, arXiv 2407.00945): the weights of slot i are
   * the sum over j of `merge[i][j]` times expert j, the same coefficient for gate, up and down, computed by
   * `mergeRows` and rounded by `roundToDtype` to the dtype in which the layer's experts are stored: so what is
   * evaluated is what a checkpoint of the plan holds, bit by bit.
   * Absent: slot i is expert `experts[i]` unchanged.
   */
  readonly merge?: readonly (readonly number[])[];
  /**
   * Router map [slots][original experts] on probabilities (W_RM of EEP): p' = map · softmax(all logits), top-k
   * on p', the chosen values divided by their sum. No stock checkpoint can express it.
   * Absent: the kept router rows decide, which every stock runtime can do.
   */
  readonly routerMap?: readonly (readonly number[])[];
  /**
   * Slots that are put together hidden unit by hidden unit (`mergeUnits`), such as experts whose neurons are aligned
   * before they are averaged; `null` for a slot that `merge` alone describes. Such a slot takes from `merge` its down
   * bias alone, the one part that no unit owns.
   */
  readonly units?: readonly (readonly UnitSource[] | null)[];
  /**
   * Changes of the down projections [slots, hidden, width], `packBfloat16`, such as those of a refit after pruning: the
   * down projection of slot i is that of the kept expert as it is stored, or the sum of `merge` or `units` before it is
   * rounded, plus its deltas (`addDelta`), rounded as merged weights are. Gate, up and biases stay. A slot whose deltas are
   * all 0 is what it would be without them.
   */
  readonly down?: string;
  /** Router rows in place of those of `experts`; excludes `routerMap`. */
  readonly router?: RouterRows;
  /** Experts per token in this layer; absent: the model's own. */
  readonly topK?: number;
  /**
   * Tokens for which fewer than top-k experts run, in place of the router's own rule (`skipRuleOf`). No stock checkpoint
   * can express it; excludes `routerMap`.
   */
  readonly skip?: SkipRule;
}

/** What one original expert gives to a slot. A hidden unit is a row of gate and up with its column of down. */
export interface UnitSource {
  readonly expert: number;
  /** [width]: the unit of the slot that each unit of the expert is added to, -1 for none; several may share one. */
  readonly to: readonly number[];
  /** Factors of each unit's rows of gate and up, biases too: [width], or one for all. */
  readonly rows: number | readonly number[];
  /** Factors of each unit's column of down: [width], or one for all. */
  readonly columns: number | readonly number[];
}

/** Values are rounded to the dtypes in which the router is stored, as those of merged experts are. */
export interface RouterRows {
  /** [slots, hidden], `packFloats`. */
  readonly weight: string;
  /** [slots]; only for routers with a bias, whose own it replaces. */
  readonly bias?: readonly number[];
  /** [slots]; only for routers with a correction, whose own it replaces. */
  readonly correction?: readonly number[];
}

/**
 * Which of the chosen experts of a token do not run. g are the gate weights of the chosen before they are divided by
 * their sum; what is left is divided by its own where the router divides. The largest is never skipped.
 *
 * - `ratio`: those with g < threshold * max(g) (NAEE, arXiv 2402.14800; ODP of MC-MoE, arXiv 2410.06270)
 * - `top-p`: those behind the fewest largest whose sum is at least threshold * sum(g)
 */
export interface SkipRule {
  readonly rule: "ratio" | "top-p";
  /** From 0 to 1. */
  readonly threshold: number;
  /**
   * Share of the tokens of a sequence, rounded up, that skip nothing when several are run at once: those of the largest
   * importance (`tokenImportance`, ODP of MC-MoE). Absent: none.
   */
  readonly spare?: number;
}

/** The concrete decision, layer by layer. Layers that are not listed stay as they are. */
export interface Plan {
  readonly format: "coppice.plan";
  readonly version: typeof planVersion;
  readonly model: PlanModel;
  readonly layers: readonly LayerPlan[];
}

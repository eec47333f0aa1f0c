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
  /** Experts per token in this layer; absent: the model's own. */
  readonly topK?: number;
}

/** The concrete decision, layer by layer. Layers that are not listed stay as they are. */
export interface Plan {
  readonly format: "coppice.plan";
  readonly version: typeof planVersion;
  readonly model: PlanModel;
  readonly layers: readonly LayerPlan[];
}

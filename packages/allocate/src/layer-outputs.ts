import { CoppiceError, type LayerTap, type MoeLayer, type Tap } from "@coppice/core";

/** What the experts of a layer put out for the tokens of a run, by the tokens' places in it. */
export class LayerOutputs {
  /** [T, k], -1 where nothing ran. */
  readonly slots: Int32Array;
  /** [T, k], factors on the outputs. */
  readonly gates: Float32Array;
  /** [T, k, hidden] */
  readonly expertOutputs: Float32Array;
  /** [T, hidden] */
  readonly output: Float32Array;
  readonly #layer: MoeLayer;
  readonly #hidden: number;

  constructor(layer: MoeLayer, tokens: number, hidden: number) {
    const { topK } = layer.feedForward.router;
    this.slots = new Int32Array(tokens * topK).fill(-1);
    this.gates = new Float32Array(tokens * topK);
    this.expertOutputs = new Float32Array(tokens * topK * hidden);
    this.output = new Float32Array(tokens * hidden);
    this.#layer = layer;
    this.#hidden = hidden;
  }

  /** Fills this from a run of the layer without a plan. */
  get tap(): Tap {
    return {
      fields: ["routing", "expertOutputs", "output"],
      onLayer: (shown) => {
        if (shown.layer === this.#layer.index) this.#add(shown);
      },
    };
  }

  #add({ rows, slots, gates, expertOutputs, output }: LayerTap): void {
    if (!slots || !gates || !expertOutputs || !output) {
      throw new CoppiceError(
        "COPPICE_BACKEND_FAILED",
        "the backend's tap lacks expert outputs, which were asked for",
      );
    }
    const { topK } = this.#layer.feedForward.router;
    const hidden = this.#hidden;
    for (const [i, row] of rows.entries()) {
      this.slots.set(slots.subarray(i * topK, (i + 1) * topK), row * topK);
      this.gates.set(gates.subarray(i * topK, (i + 1) * topK), row * topK);
      this.output.set(output.subarray(i * hidden, (i + 1) * hidden), row * hidden);
      const wide = topK * hidden;
      this.expertOutputs.set(expertOutputs.subarray(i * wide, (i + 1) * wide), row * wide);
    }
  }

  /**
   * Σ_t (g ‖f' - f‖)² of every expert, [E]: `other` is of a run with the same inputs and router.
   * @throws COPPICE_BACKEND_FAILED when outputs are not finite
   */
  expertErrors(other: LayerOutputs): Float64Array {
    const { experts, router } = this.#layer.feedForward;
    const errors = new Float64Array(experts.length);
    for (const [choice, slot] of this.slots.entries()) {
      if (slot < 0) continue;
      const gate = router.scalesInput ? 1 : (this.gates[choice] as number);
      const start = choice * this.#hidden;
      const squares = squaredDistance(this.expertOutputs, other.expertOutputs, start, start + this.#hidden);
      errors[slot] = (errors[slot] as number) + gate ** 2 * squares;
    }
    this.#check(errors);
    return errors;
  }

  /** Choices, and sums of gate weights, of every expert, [E]. */
  usage(): { readonly counts: Float64Array; readonly gates: Float64Array } {
    const experts = this.#layer.feedForward.experts.length;
    const usage = { counts: new Float64Array(experts), gates: new Float64Array(experts) };
    for (const [choice, slot] of this.slots.entries()) {
      if (slot < 0) continue;
      usage.counts[slot] = (usage.counts[slot] as number) + 1;
      usage.gates[slot] = (usage.gates[slot] as number) + (this.gates[choice] as number);
    }
    return usage;
  }

  /** Σ_t ‖y' - y‖². @throws COPPICE_BACKEND_FAILED when outputs are not finite */
  outputError(other: LayerOutputs): number {
    const error = squaredDistance(this.output, other.output, 0, this.output.length);
    this.#check([error]);
    return error;
  }

  #check(errors: ArrayLike<number>): void {
    if (Array.from(errors).every(Number.isFinite)) return;
    throw new CoppiceError("COPPICE_BACKEND_FAILED", `outputs of layer ${this.#layer.index} are not finite`, {
      hint: "the checkpoint's weights are damaged, or the backend's precision is too low for this model",
      details: { layer: this.#layer.index },
    });
  }
}

function squaredDistance(a: Float32Array, b: Float32Array, start: number, end: number): number {
  let sum = 0;
  for (let i = start; i < end; i++) sum += ((a[i] as number) - (b[i] as number)) ** 2;
  return sum;
}

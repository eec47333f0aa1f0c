import {
  CoppiceError,
  type LayerTap,
  type MoeLayer,
  type Plan,
  type Runner,
  throwIfAborted,
} from "@coppice/core";
import { NormalEquations } from "./normal-equations.js";
import type { MatrixProducts } from "./products.js";

/** A sequence of tokens that projections are fitted to. */
export interface FitText {
  readonly ids: Int32Array;
  /** How much each token counts, [tokens]; absent: 1. */
  readonly weights?: Float32Array;
}

/** Tokens that run at once; the hidden units of all slots are held for them. */
const batchTokens = 1024;

/** Texts on their way through the whole model and through the model under a plan, side by side, layer by layer. */
export class FitStream {
  readonly #runner: Runner;
  readonly #batches: readonly Batch[];
  #layer = 0;
  #tokenLayers = 0;

  constructor(runner: Runner, texts: readonly FitText[]) {
    this.#runner = runner;
    this.#batches = batchesOf(texts, batchTokens);
  }

  /** Work done so far, as backends count it. */
  get tokenLayers(): number {
    return this.#tokenLayers;
  }

  /** Goes on to the input of `layer`, through layers that `plan` does not change any more. */
  async advance(layer: number, plan: Plan, signal: AbortSignal | undefined): Promise<void> {
    if (layer <= this.#layer) return;
    for (const batch of this.#batches) {
      throwIfAborted(signal, "reconstructing");
      batch.planned = await this.#run(batch, batch.planned, layer, plan, signal);
      batch.whole = await this.#run(batch, batch.whole, layer, undefined, signal);
    }
    this.#layer = layer;
  }

  /** The normal equations of the layer whose input this stream has reached. */
  async collect(
    { feedForward }: MoeLayer,
    plan: Plan,
    products: MatrixProducts,
    signal: AbortSignal | undefined,
  ): Promise<NormalEquations> {
    const layer = this.#layer;
    const { model } = this.#runner;
    const own = plan.layers.find((entry) => entry.layer === layer);
    const slots = own?.experts.length ?? feedForward.experts.length;
    const [first] = feedForward.experts;
    if (!first) throw new CoppiceError("COPPICE_INTERNAL", `layer ${layer} has no experts`);
    const equations = new NormalEquations({ slots, width: first.width, hidden: model.hiddenSize }, products);
    for (const batch of this.#batches) {
      throwIfAborted(signal, `reconstructing layer ${layer}`);
      const seen = new SeenLayer(batch.tokens, slots, first.width, feedForward.router.scalesInput === true);
      const put = await this.#run(batch, batch.planned, layer + 1, plan, signal, seen);
      const whole = await this.#run(batch, batch.whole, layer + 1, undefined, signal);
      const same = batch.planned
        ? await this.#run(batch, batch.planned, layer + 1, undefined, signal)
        : whole;
      const scale = model.residualScale ?? 1;
      await equations.add({
        ...seen.layer(),
        missing: { stream: difference(whole, put, scale), layer: difference(same, put, scale) },
        weights: batch.weights,
      });
    }
    return equations;
  }

  async #run(
    { sequences }: Batch,
    hidden: Float32Array | undefined,
    to: number,
    plan: Plan | undefined,
    signal: AbortSignal | undefined,
    seen?: SeenLayer,
  ): Promise<Float32Array> {
    const { boundaries, tokenLayers } = await this.#runner.run({
      sequences,
      from: this.#layer,
      to,
      boundaries: [to],
      ...(hidden && { hidden }),
      ...(plan && { plan }),
      ...(seen && { tap: { fields: ["routing", "everyUnit"], onLayer: (tap) => seen.take(tap) } }),
      ...(signal && { signal }),
    });
    this.#tokenLayers += tokenLayers;
    // A backend may use its arrays again.
    return (boundaries.get(to) as Float32Array).slice();
  }
}

interface Batch {
  readonly sequences: readonly Int32Array[];
  readonly tokens: number;
  readonly weights: Float32Array;
  /** Inputs of the layer that was reached, [tokens, hidden]; absent at the embeddings. */
  whole?: Float32Array;
  planned?: Float32Array;
}

function batchesOf(texts: readonly FitText[], most: number): Batch[] {
  const batches: Batch[] = [];
  let open: FitText[] = [];
  let tokens = 0;
  const close = () => {
    if (open.length === 0) return;
    const weights = new Float32Array(tokens).fill(1);
    let at = 0;
    for (const { ids, weights: own } of open) {
      if (own) weights.set(own, at);
      at += ids.length;
    }
    batches.push({ sequences: open.map(({ ids }) => ids), tokens, weights });
    [open, tokens] = [[], 0];
  };
  for (const text of texts) {
    if (tokens + text.ids.length > most) close();
    open.push(text);
    tokens += text.ids.length;
  }
  close();
  return batches;
}

/** What a tap saw of one layer, copied together: a backend may show a batch in several pieces and reuse its arrays. */
class SeenLayer {
  readonly #tokens: number;
  readonly #units: Float32Array;
  readonly #scalesInput: boolean;
  #topK = 0;
  #slots = new Int32Array(0);
  #gates = new Float32Array(0);

  constructor(tokens: number, slots: number, width: number, scalesInput: boolean) {
    this.#tokens = tokens;
    this.#units = new Float32Array(tokens * slots * width);
    this.#scalesInput = scalesInput;
  }

  take({ tokens, topK, rows, slots, gates, everyRows, everyUnit }: LayerTap): void {
    if (!slots || !gates || !everyRows || !everyUnit) {
      throw new CoppiceError("COPPICE_BACKEND_FAILED", "the backend's tap lacks routing or hidden units");
    }
    if (this.#topK === 0) {
      this.#topK = topK;
      this.#slots = new Int32Array(this.#tokens * topK);
      this.#gates = new Float32Array(this.#tokens * topK);
    }
    for (let t = 0; t < tokens; t++) {
      const to = (rows[t] as number) * topK;
      this.#slots.set(slots.subarray(t * topK, (t + 1) * topK), to);
      // Where gate weights scale inputs, the units have them already.
      if (this.#scalesInput) this.#gates.fill(1, to, to + topK);
      else this.#gates.set(gates.subarray(t * topK, (t + 1) * topK), to);
    }
    const size = this.#units.length / this.#tokens;
    everyRows.forEach((t, i) => {
      this.#units.set(everyUnit.subarray(i * size, (i + 1) * size), (rows[t] as number) * size);
    });
  }

  layer() {
    return {
      tokens: this.#tokens,
      topK: this.#topK,
      slots: this.#slots,
      gates: this.#gates,
      units: this.#units,
    };
  }
}

function difference(wanted: Float32Array, put: Float32Array, scale: number): Float32Array {
  return wanted.map((value, i) => (value - (put[i] as number)) / scale);
}

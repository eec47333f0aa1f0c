import { type MoeLayer, type MoeModel, moeLayers, type WeightReader } from "@coppice/core";

/** A router with the rows of all its experts, also where only some of the experts are loaded. */
export class FullRouter {
  readonly layer: number;
  readonly experts: number;
  readonly #weight: Float32Array;
  readonly #bias: Float32Array | undefined;
  #logits = new Float32Array(0);

  private constructor(layer: number, experts: number, weight: Float32Array, bias: Float32Array | undefined) {
    this.layer = layer;
    this.experts = experts;
    this.#weight = weight;
    this.#bias = bias;
  }

  /** @throws those of `WeightReader.read` */
  static async read(
    { index, feedForward }: MoeLayer,
    weights: WeightReader,
    signal?: AbortSignal,
  ): Promise<FullRouter> {
    const { weight, bias } = feedForward.router;
    const options = signal ? { signal } : {};
    return new FullRouter(
      index,
      feedForward.experts.length,
      await weights.read(weight, options),
      bias && (await weights.read(bias, options)),
    );
  }

  /**
   * Router logits of all experts, [tokens, E], the router's bias included; the array is reused by the next call.
   * @param input of the MoE block, [tokens, hidden] (`LayerTap.input`)
   */
  logits(input: Float32Array, tokens: number): Float32Array {
    const { experts } = this;
    const hidden = this.#weight.length / experts;
    if (this.#logits.length < tokens * experts) this.#logits = new Float32Array(tokens * experts);
    const out = this.#logits.subarray(0, tokens * experts);
    for (let token = 0; token < tokens; token++) {
      for (let expert = 0; expert < experts; expert++) {
        let sum = this.#bias?.[expert] ?? 0;
        for (let i = 0; i < hidden; i++) {
          sum += (input[token * hidden + i] as number) * (this.#weight[expert * hidden + i] as number);
        }
        out[token * experts + expert] = sum;
      }
    }
    return out;
  }
}

/** The routers of all MoE layers, by layer; they take layers x experts x hidden x 4 bytes. */
export async function readRouters(
  model: MoeModel,
  weights: WeightReader,
  signal?: AbortSignal,
): Promise<ReadonlyMap<number, FullRouter>> {
  const routers = new Map<number, FullRouter>();
  for (const layer of moeLayers(model))
    routers.set(layer.index, await FullRouter.read(layer, weights, signal));
  return routers;
}

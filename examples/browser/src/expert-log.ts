/** Experts of one layer that ran, [tokens, top-k], best first, as the exported model numbers them. */
export interface Choices {
  readonly layer: number;
  readonly experts: Int32Array;
}

/** Which experts every token of a text chose in every layer, as the original model numbers them. */
export class ExpertLog {
  readonly #kept: readonly (readonly number[])[];
  /** Layer, token, choices. */
  readonly #chosen: number[][][];
  readonly #counts: number[][];

  /**
   * @param experts of every layer of the original
   * @param kept those that the model still has, layer by layer
   */
  constructor(
    readonly experts: number,
    kept: readonly (readonly number[])[],
  ) {
    this.#kept = kept;
    this.#chosen = kept.map(() => []);
    this.#counts = kept.map(() => new Array<number>(experts).fill(0));
  }

  get layers(): number {
    return this.#kept.length;
  }

  /** Tokens so far. */
  get tokens(): number {
    return this.#chosen[0]?.length ?? 0;
  }

  /** @param tokens that the choices are of */
  add(tokens: number, choices: readonly Choices[]): void {
    for (const { layer, experts } of choices) {
      const [kept, chosen, counts] = [this.#kept[layer], this.#chosen[layer], this.#counts[layer]];
      if (!kept || !chosen || !counts) continue;
      const topK = experts.length / tokens;
      for (let token = 0; token < tokens; token++) {
        const row = Array.from(experts.subarray(token * topK, (token + 1) * topK), (at) => kept[at] ?? at);
        for (const expert of row) counts[expert] = (counts[expert] ?? 0) + 1;
        chosen.push(row);
      }
    }
  }

  /** What a token chose in a layer, best first. */
  chosen(layer: number, token: number): readonly number[] {
    return this.#chosen[layer]?.[token] ?? [];
  }

  /** Share of the tokens that chose an expert; undefined for one that was removed. */
  share(layer: number, expert: number): number | undefined {
    if (!this.#kept[layer]?.includes(expert)) return undefined;
    return this.tokens === 0 ? 0 : (this.#counts[layer]?.[expert] ?? 0) / this.tokens;
  }

  /** The experts of a token in words, layers and experts counted from 1. */
  describe(token: number): string {
    return this.#chosen
      .map(
        (_, layer) =>
          `layer ${layer + 1}: ${this.chosen(layer, token)
            .map((expert) => expert + 1)
            .join(" and ")}`,
      )
      .join(", ");
  }
}

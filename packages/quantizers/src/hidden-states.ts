import type { WorkStore } from "@coppice/calibrate";
import type { MoeModel, WeightReader } from "@coppice/core";

/** Sequences that run together. */
export interface Batch {
  readonly number: number;
  readonly sequences: readonly Int32Array[];
  readonly tokens: number;
}

/** Most tokens of a batch, unless a single sequence has more. */
const batchTokens = 2048;

export function batchesOf(sequences: readonly Int32Array[]): Batch[] {
  const batches: { sequences: Int32Array[]; tokens: number }[] = [];
  for (const sequence of sequences) {
    if (sequence.length === 0) continue;
    const last = batches.at(-1);
    if (last && last.tokens + sequence.length <= batchTokens) {
      last.sequences.push(sequence);
      last.tokens += sequence.length;
    } else batches.push({ sequences: [sequence], tokens: sequence.length });
  }
  return batches.map((batch, number) => ({ number, ...batch }));
}

/** Inputs of a layer for every batch, in memory or in a store. */
export class HiddenStates {
  readonly #store: WorkStore | undefined;
  readonly #held = new Map<number, Float32Array>();

  constructor(store: WorkStore | undefined) {
    this.#store = store;
  }

  async read({ number }: Batch): Promise<Float32Array> {
    if (!this.#store) return this.#held.get(number) as Float32Array;
    const bytes = await this.#store.read(fileOf(number));
    return new Float32Array(bytes.slice().buffer);
  }

  async write({ number }: Batch, hidden: Float32Array): Promise<void> {
    if (!this.#store) this.#held.set(number, hidden);
    else {
      const bytes = new Uint8Array(hidden.buffer, hidden.byteOffset, hidden.byteLength);
      await this.#store.write(fileOf(number), bytes);
    }
  }

  async clear(batches: readonly Batch[]): Promise<void> {
    this.#held.clear();
    for (const { number } of batches) await this.#store?.remove(fileOf(number));
  }
}

function fileOf(number: number): string {
  return `quantize-${String(number).padStart(6, "0")}.f32`;
}

/** What the first layer reads: rows of the embedding. */
export async function embed(
  { embedding, embeddingScale = 1, hiddenSize }: MoeModel,
  weights: WeightReader,
  batches: readonly Batch[],
  states: HiddenStates,
): Promise<void> {
  const table = await weights.read(embedding);
  for (const batch of batches) {
    const hidden = new Float32Array(batch.tokens * hiddenSize);
    let row = 0;
    for (const sequence of batch.sequences) {
      for (const token of sequence) {
        for (let i = 0; i < hiddenSize; i++) {
          hidden[row * hiddenSize + i] = (table[token * hiddenSize + i] as number) * embeddingScale;
        }
        row++;
      }
    }
    await states.write(batch, hidden);
  }
}

import type { MoeModel, WeightReader } from "@coppice/core";

const tables = new WeakMap<WeightReader, Promise<Float32Array>>();

/** [tokens, hidden], what the first layer reads. The table is read once per reader. */
export async function embedTokens(
  { embedding, embeddingScale = 1, hiddenSize }: MoeModel,
  weights: WeightReader,
  tokens: Int32Array,
): Promise<Float32Array> {
  const reading = tables.get(weights) ?? weights.read(embedding);
  tables.set(weights, reading);
  const table = await reading;
  const hidden = new Float32Array(tokens.length * hiddenSize);
  tokens.forEach((token, row) => {
    for (let i = 0; i < hiddenSize; i++)
      hidden[row * hiddenSize + i] = (table[token * hiddenSize + i] as number) * embeddingScale;
  });
  return hidden;
}

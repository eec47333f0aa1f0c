import type { MoeModel } from "@coppice/core";

/**
 * [tokens, hidden], what the first layer reads.
 * @param table [vocab, hidden]
 */
export function embedTokens(
  { embeddingScale = 1, hiddenSize }: MoeModel,
  table: Float32Array,
  tokens: Int32Array,
): Float32Array {
  const hidden = new Float32Array(tokens.length * hiddenSize);
  tokens.forEach((token, row) => {
    for (let i = 0; i < hiddenSize; i++)
      hidden[row * hiddenSize + i] = (table[token * hiddenSize + i] as number) * embeddingScale;
  });
  return hidden;
}

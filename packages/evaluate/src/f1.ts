/**
 * Overlap of words between two texts: the harmonic mean of precision and recall over the bag of words after
 * SQuAD's normalisation (lower case, no ASCII punctuation, no articles; P. Rajpurkar et al., arXiv 1606.05250,
 * evaluate-v1.1.py). Two texts without words score 1 when both are empty, else 0.
 */
export function f1Score(prediction: string, gold: string): number {
  const predicted = words(prediction);
  const expected = words(gold);
  if (predicted.length === 0 || expected.length === 0) return predicted.length === expected.length ? 1 : 0;
  const same = wordOverlap(predicted, expected);
  if (same === 0) return 0;
  const precision = same / predicted.length;
  const recall = same / expected.length;
  return (2 * precision * recall) / (precision + recall);
}

/** Words that two bags have in common. */
export function wordOverlap(predicted: readonly string[], expected: readonly string[]): number {
  const left = new Map<string, number>();
  for (const word of expected) left.set(word, (left.get(word) ?? 0) + 1);
  let same = 0;
  for (const word of predicted) {
    const count = left.get(word) ?? 0;
    if (count === 0) continue;
    left.set(word, count - 1);
    same++;
  }
  return same;
}

/** Words of a text after SQuAD's normalisation. */
export function words(text: string): string[] {
  return text
    .toLowerCase()
    .replace(/[!-/:-@[-`{-~]/g, "")
    .replace(/(?<![\p{L}\p{N}_])(?:an?|the)(?![\p{L}\p{N}_])/gu, " ")
    .split(/\s+/)
    .filter((word) => word !== "");
}

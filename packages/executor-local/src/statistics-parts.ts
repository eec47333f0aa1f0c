/**
 * Cuts data into consecutive parts of about equal numbers of tokens. Parts do not depend on the number of workers, so
 * neither do sums over them; some may be empty.
 */
export function partsOf(sequences: readonly Int32Array[], parts: number): Int32Array[][] {
  const total = sequences.reduce((sum, { length }) => sum + length, 0);
  const cut: Int32Array[][] = Array.from({ length: parts }, () => []);
  let before = 0;
  for (const sequence of sequences) {
    const middle = before + sequence.length / 2;
    cut[Math.min(parts - 1, Math.floor((middle / total) * parts))]?.push(sequence);
    before += sequence.length;
  }
  return cut;
}

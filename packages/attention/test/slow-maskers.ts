import type { DecodeView, PrefillView } from "@coppice/core";

/** Maskers written from their formulas: whole matrices in float64, no shortcuts. */

type Matrix = number[][];

export function headKeys({ keys, kvHeads, keyDim, heads }: PrefillView | DecodeView, head: number): Matrix {
  const kvHead = Math.floor((head * kvHeads) / heads);
  return Array.from({ length: keys.length / (kvHeads * keyDim) }, (_, at) =>
    Array.from({ length: keyDim }, (_, d) => keys[(at * kvHeads + kvHead) * keyDim + d] as number),
  );
}

export function headQueries({ queries, heads, keyDim }: PrefillView | DecodeView, head: number): Matrix {
  return Array.from({ length: queries.length / (heads * keyDim) }, (_, at) =>
    Array.from({ length: keyDim }, (_, d) => queries[(at * heads + head) * keyDim + d] as number),
  );
}

const product = (a: readonly number[], b: readonly number[]) =>
  a.reduce((sum, value, d) => sum + value * (b[d] as number), 0);
const total = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0);
const normalised = (scores: readonly number[]) => {
  const powers = scores.map((score) => Math.exp(score));
  return powers.map((power) => power / total(powers));
};
const mean = (rows: Matrix) =>
  (rows[0] as number[]).map((_, d) => total(rows.map((row) => row[d] as number)) / rows.length);
const blocksOf = <T>(rows: readonly T[], size: number): T[][] =>
  Array.from({ length: Math.ceil(rows.length / size) }, (_, i) => rows.slice(i * size, (i + 1) * size));
/** Fewest entries, by falling value, whose values come to `wanted`. */
const fewest = (values: readonly number[], wanted: number): number[] => {
  const order = values
    .map((_, i) => i)
    .sort((a, b) => (values[b] as number) - (values[a] as number) || a - b);
  for (let count = 0; ; count++) {
    const chosen = order.slice(0, count);
    if (count === order.length || total(chosen.map((i) => values[i] as number)) >= wanted) return chosen;
  }
};
const largest = (values: readonly number[], count: number): number[] =>
  values
    .map((_, i) => i)
    .sort((a, b) => (values[b] as number) - (values[a] as number) || a - b)
    .slice(0, count);

export interface SlowFlex {
  readonly gamma: number;
  readonly tau: number;
  readonly minimum: number;
  readonly blockSize: number;
}

/** Blocks that a head sees, `row column`; and whether pooled queries and keys foretold them. */
export function slowFlex(view: PrefillView, head: number, { gamma, tau, minimum, blockSize }: SlowFlex) {
  const { tokens, scale } = view;
  const [queries, keys] = [headQueries(view, head), headKeys(view, head)];
  const blocks = Math.ceil(tokens / blockSize);
  const least = Math.ceil(minimum / blockSize);
  const last = queries.slice(-blockSize);
  const attention = last.map((query, i) => {
    const seen = tokens - last.length + i + 1;
    const shares = normalised(keys.slice(0, seen).map((key) => scale * product(query, key)));
    return [...shares, ...new Array<number>(tokens - seen).fill(0)];
  });
  const vertical = mean(attention);
  const slash = Array.from(
    { length: tokens },
    (_, back) => total(attention.map((row, i) => row[tokens - last.length + i - back] ?? 0)) / last.length,
  );
  const columns = blocksOf(vertical, blockSize).map(total);
  const distances = blocksOf(slash, blockSize).map(total);
  const pooledKeys = blocksOf(keys, blockSize).map(mean);
  const pooledQueries = blocksOf(queries, blockSize).map(mean);
  const guess = normalised(pooledKeys.map((key) => scale * product(mean(last), key)));
  const divergence = total(
    guess.map((p, i) => {
      const q = columns[i] as number;
      const m = (p + q) / 2;
      return (p === 0 ? 0 : p * Math.log(p / m)) / 2 + (q === 0 ? 0 : q * Math.log(q / m)) / 2;
    }),
  );
  const foretold = Math.sqrt(Math.max(0, divergence)) < tau;
  const lines = foretold
    ? least
    : Math.max(least, Math.floor(fewest(vertical, gamma).length / blockSize) + 1);
  const slashes = foretold ? least : Math.max(least, Math.floor(fewest(slash, gamma).length / blockSize) + 1);
  const keptColumns = largest([Infinity, ...columns.slice(1)], lines);
  const keptDistances = largest([Infinity, ...distances.slice(1)], slashes);
  const seen = new Set<string>();
  for (let row = 0; row < blocks; row++) {
    for (let column = 0; column <= row; column++) {
      if (keptColumns.includes(column) || keptDistances.includes(row - column)) seen.add(`${row} ${column}`);
    }
  }
  if (foretold) {
    const shares = pooledQueries.flatMap((query, row) => {
      const own = normalised(pooledKeys.slice(0, row + 1).map((key) => scale * product(query, key)));
      return own.map((share, column) => ({ share, at: `${row} ${column}` }));
    });
    for (const i of fewest(
      shares.map(({ share }) => share),
      gamma * blocks,
    ))
      seen.add(shares[i]?.at ?? "");
  }
  return { seen, foretold };
}

export interface SlowAntidiagonal {
  readonly threshold: number;
  readonly stride: number;
  readonly blockSize: number;
}

/** Blocks that a head sees, `row column`. */
export function slowAntidiagonal(view: PrefillView, head: number, options: SlowAntidiagonal): Set<string> {
  const { threshold, stride, blockSize } = options;
  const pad = (rows: Matrix) => [
    ...rows,
    ...Array.from({ length: (stride - (rows.length % stride)) % stride }, () =>
      new Array<number>(view.keyDim).fill(0),
    ),
  ];
  const queries = blocksOf(pad(headQueries(view, head)), stride).map((group) => [...group].reverse().flat());
  const keys = blocksOf(pad(headKeys(view, head)), stride).map((group) => group.flat());
  const attention = queries.map((query, r) =>
    normalised(keys.slice(0, r + 1).map((key) => (view.scale * product(query, key)) / stride)),
  );
  const seen = new Set<string>();
  blocksOf(attention, blockSize / stride).forEach((rows, row) => {
    const shares = Array.from({ length: row + 1 }, (_, column) =>
      total(rows.flatMap((shares) => blocksOf(shares, blockSize / stride)[column] ?? [])),
    );
    const chosen = new Set([0, row]);
    const sum = () => total([...chosen].map((column) => shares[column] as number));
    for (const column of largest(shares, row + 1)) {
      if (sum() >= threshold * total(shares)) break;
      chosen.add(column);
    }
    for (const column of chosen) seen.add(`${row} ${column}`);
  });
  return seen;
}

/** Pages that a KV head reads: by the largest share that the bound of a page has in any query head of its group. */
export function slowPages(view: DecodeView, kvHead: number, pageSize: number, kept: number): number[] {
  const group = view.heads / view.kvHeads;
  const shares = Array.from({ length: group }, (_, g) => {
    const head = kvHead * group + g;
    const [query] = headQueries(view, head) as [number[]];
    const bounds = blocksOf(headKeys(view, head), pageSize).map((keys) =>
      total(
        query.map((value, d) => {
          const channel = keys.map((key) => key[d] as number);
          return Math.max(value * Math.min(...channel), value * Math.max(...channel));
        }),
      ),
    );
    return normalised(bounds.map((bound) => view.scale * bound));
  });
  const scores = (shares[0] as number[]).map((_, page) =>
    Math.max(...shares.map((own) => own[page] as number)),
  );
  scores[scores.length - 1] = Infinity;
  return largest(scores, kept).sort((a, b) => a - b);
}

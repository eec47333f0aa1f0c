/**
 * The assignment of n rows to n columns, each to one, whose costs add up to the least: shortest augmenting paths with
 * dual prices (Jonker and Volgenant, Computing 38, 1987; the search of Crouse, IEEE TAES 52(4), 2016), which takes
 * O(n³) steps at most. Rows that can have their cheapest column at once are assigned before the first path is searched.
 * Among equal costs it is deterministic; with all costs equal row i gets column i.
 * @param costs [n, n], finite
 * @returns the column of every row
 */
export function assign(costs: Float64Array, n: number): Int32Array {
  const rowPrice = new Float64Array(n);
  const columnPrice = new Float64Array(n);
  const columnOf = new Int32Array(n).fill(-1);
  const rowOf = new Int32Array(n).fill(-1);
  reduce(costs, n, { rowPrice, columnPrice, columnOf, rowOf });

  const distance = new Float64Array(n);
  const previous = new Int32Array(n);
  /** Columns that are not reached yet come first; `reached` of them at the end are. */
  const open = new Int32Array(n);
  for (let start = 0; start < n; start++) {
    if (columnOf[start] !== -1) continue;
    for (let i = 0; i < n; i++) open[i] = i;
    distance.fill(Number.POSITIVE_INFINITY);
    let left = n;
    let row = start;
    let least = 0;
    let sink = -1;
    while (sink === -1) {
      const base = row * n;
      const offset = least - (rowPrice[row] as number);
      let next = 0;
      let nearest = Number.POSITIVE_INFINITY;
      for (let i = 0; i < left; i++) {
        const column = open[i] as number;
        const through = offset + (costs[base + column] as number) - (columnPrice[column] as number);
        let known = distance[column] as number;
        if (through < known) {
          known = through;
          distance[column] = through;
          previous[column] = row;
        }
        // Of columns that are equally near a free one ends the search.
        if (known < nearest || (known === nearest && rowOf[column] === -1)) {
          nearest = known;
          next = i;
        }
      }
      least = nearest;
      const column = open[next] as number;
      left--;
      open[next] = open[left] as number;
      open[left] = column;
      if (rowOf[column] === -1) sink = column;
      else row = rowOf[column] as number;
    }
    // New prices keep every assigned pair at reduced cost 0 and all others at 0 or more.
    rowPrice[start] = (rowPrice[start] as number) + least;
    for (let i = left; i < n; i++) {
      const column = open[i] as number;
      if (column === sink) continue;
      const gain = least - (distance[column] as number);
      const owner = rowOf[column] as number;
      rowPrice[owner] = (rowPrice[owner] as number) + gain;
      columnPrice[column] = (columnPrice[column] as number) - gain;
    }
    for (let column = sink; ; ) {
      const owner = previous[column] as number;
      rowOf[column] = owner;
      const before = columnOf[owner] as number;
      columnOf[owner] = column;
      if (owner === start) break;
      column = before;
    }
  }
  return columnOf;
}

interface Matching {
  readonly rowPrice: Float64Array;
  readonly columnPrice: Float64Array;
  readonly columnOf: Int32Array;
  readonly rowOf: Int32Array;
}

/** Prices that leave no reduced cost below 0, and the pairs at 0 that rows in order can have. */
function reduce(costs: Float64Array, n: number, { rowPrice, columnPrice, columnOf, rowOf }: Matching): void {
  columnPrice.fill(Number.POSITIVE_INFINITY);
  for (let row = 0; row < n; row++) {
    for (let column = 0; column < n; column++) {
      const cost = costs[row * n + column] as number;
      if (cost < (columnPrice[column] as number)) columnPrice[column] = cost;
    }
  }
  for (let row = 0; row < n; row++) {
    let least = Number.POSITIVE_INFINITY;
    for (let column = 0; column < n; column++) {
      least = Math.min(least, (costs[row * n + column] as number) - (columnPrice[column] as number));
    }
    rowPrice[row] = least;
    for (let column = 0; column < n; column++) {
      const reduced = (costs[row * n + column] as number) - (columnPrice[column] as number);
      if (reduced !== least || rowOf[column] !== -1) continue;
      columnOf[row] = column;
      rowOf[column] = row;
      break;
    }
  }
}

/**
 * Partial choices of which none has both fewer bytes and less loss than another: bytes ascend, losses descend. `from` is the
 * node of what was chosen before, -1 for none, `pick` the last choice.
 */
export interface Frontier {
  readonly bytes: Float64Array;
  readonly loss: Float64Array;
  readonly from: Int32Array;
  readonly pick: Int32Array;
}

export function singleFrontier(): Frontier {
  return {
    bytes: new Float64Array(1),
    loss: new Float64Array(1),
    from: Int32Array.of(-1),
    pick: new Int32Array(1),
  };
}

/** What a partial choice may have at most so that it is of use. */
export interface FrontierLimits {
  readonly bytes: number;
  /** Of loss + multiplier * bytes. */
  readonly weighed: number;
  readonly multiplier: number;
}

/** Adds the only option of a unit to all choices, in place. */
export function extendedInPlace(
  frontier: Frontier,
  option: { readonly bytes: number; readonly loss: number },
): Frontier {
  const { bytes, loss } = frontier;
  for (let i = 0; i < bytes.length; i++) {
    bytes[i] = (bytes[i] as number) + option.bytes;
    loss[i] = (loss[i] as number) + option.loss;
  }
  return frontier;
}

/** All choices with one more option, those beyond the limits left out. */
export function extended(
  frontier: Frontier,
  option: { readonly bytes: number; readonly loss: number },
  pick: number,
  limits: FrontierLimits,
): Frontier {
  const out = emptyFrontier(frontier.bytes.length);
  let count = 0;
  for (let i = 0; i < frontier.bytes.length; i++) {
    const bytes = (frontier.bytes[i] as number) + option.bytes;
    if (bytes > limits.bytes) break;
    const loss = (frontier.loss[i] as number) + option.loss;
    if (loss + limits.multiplier * bytes > limits.weighed) continue;
    out.bytes[count] = bytes;
    out.loss[count] = loss;
    out.from[count] = frontier.from[i] as number;
    out.pick[count] = pick;
    count++;
  }
  return cut(out, count);
}

/** The frontier of two together. */
export function merged(a: Frontier, b: Frontier): Frontier {
  const out = emptyFrontier(a.bytes.length + b.bytes.length);
  let least = Number.POSITIVE_INFINITY;
  let [i, j, count] = [0, 0, 0];
  while (i < a.bytes.length || j < b.bytes.length) {
    const difference = i >= a.bytes.length ? 1 : j >= b.bytes.length ? -1 : compared(a, i, b, j);
    const [source, at] = difference <= 0 ? [a, i++] : [b, j++];
    const loss = source.loss[at] as number;
    if (loss >= least) continue;
    least = loss;
    out.bytes[count] = source.bytes[at] as number;
    out.loss[count] = loss;
    out.from[count] = source.from[at] as number;
    out.pick[count] = source.pick[at] as number;
    count++;
  }
  return cut(out, count);
}

/** Which comes first: fewer bytes, then less loss. */
function compared(a: Frontier, i: number, b: Frontier, j: number): number {
  return (a.bytes[i] as number) - (b.bytes[j] as number) || (a.loss[i] as number) - (b.loss[j] as number);
}

/** Room for so many choices. */
export function emptyFrontier(length: number): Frontier {
  return {
    bytes: new Float64Array(length),
    loss: new Float64Array(length),
    from: new Int32Array(length),
    pick: new Int32Array(length),
  };
}

function cut(frontier: Frontier, count: number): Frontier {
  const { bytes, loss, from, pick } = frontier;
  if (count === bytes.length) return frontier;
  return {
    bytes: bytes.subarray(0, count),
    loss: loss.subarray(0, count),
    from: from.subarray(0, count),
    pick: pick.subarray(0, count),
  };
}

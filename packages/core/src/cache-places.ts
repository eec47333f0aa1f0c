import type { HeadSpan } from "./attention-spans.js";

/**
 * Where the keys of a sequence lie in arrays that keep what a span needs: the first `sinks` positions stay, the last
 * `window - 1` of the others take turns. Keys are turned by their positions when they are written, so their order does not matter.
 */
export class CachePlaces {
  readonly #sinks: number;
  /** Places that take turns. */
  readonly #ring: number;

  constructor(span: HeadSpan | undefined) {
    this.#sinks = span?.sinks ?? 0;
    this.#ring = span ? span.window - 1 : Number.POSITIVE_INFINITY;
  }

  /** Places that can ever be filled. */
  get room(): number {
    return this.#sinks + this.#ring;
  }

  /** Places that hold something behind `past` tokens: the first ones. */
  filled(past: number): number {
    return Math.min(past, this.room);
  }

  /**
   * Ranges of places of positions `from` to `to`, as many of them as are held together behind `past` tokens.
   * @param take gets the first position of a range, its place, and how many follow each other
   */
  ranges(
    from: number,
    to: number,
    past: number,
    take: (position: number, place: number, count: number) => void,
  ): void {
    const [sinks, ring] = [this.#sinks, this.#ring];
    const end = Math.min(to, past);
    if (from < Math.min(end, sinks)) take(from, from, Math.min(end, sinks) - from);
    let position = Math.max(from, sinks, past - ring);
    while (position < end) {
      const turn = ring === Number.POSITIVE_INFINITY ? position : sinks + ((position - sinks) % ring);
      const count = Math.min(end - position, sinks + ring - turn);
      take(position, turn, count);
      position += count;
    }
  }
}

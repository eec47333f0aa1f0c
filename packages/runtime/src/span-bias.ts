import { CachePlaces, type HeadSpan } from "@coppice/core";

/** Added to the score of a key that a token does not see: its probability is 0. */
const hidden = -1e9;

/** What is added to the scores of places that heads with a span hold. */
export class SpanBias {
  #zeros = new Float32Array(1024);

  /**
   * [added, held and new places]: hides places that are out of the window of a new token. One that runs alone sees all that is held.
   * @param tokens that ran before
   */
  values(span: HeadSpan, tokens: number, added: number): { data: Float32Array; places: number } {
    const layout = new CachePlaces(span);
    const held = layout.filled(tokens);
    const places = held + added;
    if (added === 1) {
      if (places > this.#zeros.length) this.#zeros = new Float32Array(2 * places);
      return { data: this.#zeros.subarray(0, places), places };
    }
    const data = new Float32Array(added * places);
    for (let i = 0; i < added; i++) {
      const row = data.subarray(i * places, (i + 1) * places);
      // Positions before this one are out of the window; sinks never are.
      const end = tokens + i - span.window + 1;
      layout.ranges(span.sinks, end, tokens, (_, place, count) => row.fill(hidden, place, place + count));
      const from = Math.max(tokens, span.sinks);
      if (from < end) row.fill(hidden, held + from - tokens, held + end - tokens);
    }
    return { data, places };
  }
}

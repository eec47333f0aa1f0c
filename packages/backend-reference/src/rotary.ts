import { type RotarySpec, rotaryFrequencies, rotaryRegime } from "@coppice/core";

/** cos and sin of the positions from `first` to `end` - 1, [position, half]. */
interface Table {
  readonly first: number;
  readonly end: number;
  readonly cos: Float32Array;
  readonly sin: Float32Array;
}

/** Tables held at once: some scalings have frequencies of their own for every length of a sequence. */
const tableLimit = 8;

/**
 * Rotates queries or keys by their positions, in place: dimension i pairs with i + dimensions / 2, or 2i with 2i + 1.
 *
 * Frequencies and angles are rounded to float32 as the reference implementations do: at position 100,000 exact
 * angles would differ from those the model was trained with by more than the tolerance of a logit.
 */
export class Rotary {
  readonly #spec: RotarySpec;
  readonly #tables = new Map<number, Table>();

  constructor(spec: RotarySpec) {
    this.#spec = spec;
  }

  /**
   * Rotates the tokens of one sequence, of which `past` positions came before.
   * @param x tokens of `stride` values; of each, heads of `headDim` values begin at `at`, `at + headDim` and so on
   * @param offset first rotating dimension of a head
   */
  apply(
    x: Float32Array,
    { at, tokens, stride, past }: { at: number; tokens: number; stride: number; past: number },
    { heads, headDim, offset }: { heads: number; headDim: number; offset: number },
  ): void {
    const { dimensions, interleaved } = this.#spec;
    const half = dimensions / 2;
    const [step, partner] = interleaved ? [2, 1] : [1, half];
    const { first, cos, sin } = this.#table(past, past + tokens);
    for (let token = 0; token < tokens; token++) {
      const row = (past + token - first) * half;
      for (let head = 0; head < heads; head++) {
        const start = at + token * stride + head * headDim + offset;
        for (let i = 0; i < half; i++) {
          const a = x[start + i * step] as number;
          const b = x[start + i * step + partner] as number;
          const c = cos[row + i] as number;
          const s = sin[row + i] as number;
          x[start + i * step] = a * c - b * s;
          x[start + i * step + partner] = b * c + a * s;
        }
      }
    }
  }

  /** Positions `from` to `length` - 1 of a sequence of `length` positions. */
  #table(from: number, length: number): Table {
    const regime = rotaryRegime(this.#spec, length);
    const known = this.#tables.get(regime);
    if (known && known.first <= from && known.end >= length) return known;
    // Frequencies that only this length has are of no use to later positions.
    const single = regime === length;
    const first = single ? from : 0;
    const end = single ? length : Math.max(length, 2 * (known?.end ?? 0));
    const { frequencies, factor } = rotaryFrequencies(this.#spec, length);
    const half = frequencies.length;
    const table = {
      first,
      end,
      cos: new Float32Array((end - first) * half),
      sin: new Float32Array((end - first) * half),
    };
    for (let position = first; position < end; position++) {
      const row = (position - first) * half;
      for (let i = 0; i < half; i++) {
        const angle = Math.fround(position * (frequencies[i] as number));
        table.cos[row + i] = Math.fround(Math.cos(angle)) * factor;
        table.sin[row + i] = Math.fround(Math.sin(angle)) * factor;
      }
    }
    this.#tables.delete(regime);
    this.#tables.set(regime, table);
    if (this.#tables.size > tableLimit) this.#tables.delete(this.#tables.keys().next().value as number);
    return table;
  }
}

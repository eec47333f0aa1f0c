import type { GroupedQueryAttentionSpec } from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { PackedRows } from "./packed-rows.js";
import type { Feeds, Runtime } from "./sessions.js";
import type { Piece } from "./units.js";

/** What the attention of a unit's layers reads besides weights, made once for all layers that are alike. */
export class UnitInputs {
  /** Those of every layer. */
  readonly feeds: Feeds;
  /** Tokens that the longest sequence has by now, its past included. */
  readonly positions: number;
  readonly #runtime: Runtime;
  readonly #pieces: readonly Piece[];
  readonly #packed: PackedRows;
  readonly #made = new Map<string, Tensor>();

  constructor(runtime: Runtime, pieces: readonly Piece[], packed: PackedRows) {
    const { pad, unpad, longest } = packed;
    const { Tensor } = runtime;
    const lengths = Int32Array.from(pieces, ({ begin, end, past }) => past + end - begin - 1);
    this.positions = Math.max(...lengths) + 1;
    this.feeds = {
      pad: new Tensor("int32", pad, [pieces.length, longest]),
      unpad: new Tensor("int32", unpad, [unpad.length]),
      lengths: new Tensor("int32", lengths, [pieces.length]),
      total: new Tensor("int32", Int32Array.of(this.positions), []),
    };
    this.#runtime = runtime;
    this.#pieces = pieces;
    this.#packed = packed;
  }

  /** int32 [N], the position of every row in its sequence. */
  rowPositions(): Tensor {
    return this.#once("positions", () => {
      const positions = this.#positionsOfRows();
      return new this.#runtime.Tensor("int32", positions, [positions.length]);
    });
  }

  /** [N, 1], the factor of every row's query. */
  temperature({ floor, scale }: NonNullable<GroupedQueryAttentionSpec["temperature"]>): Tensor {
    return this.#once(`temperature ${floor} ${scale}`, () => {
      const factors = Float32Array.from(
        this.#positionsOfRows(),
        (position) => 1 + scale * Math.log1p(Math.floor((position + 1) / floor)),
      );
      return new this.#runtime.Tensor("float32", factors, [factors.length, 1]);
    });
  }

  /** [pieces, 1, S, positions], -Infinity between chunks of `size` positions; undefined when all lie in the first. */
  chunkMask(size: number): Tensor | undefined {
    if (this.positions <= size) return undefined;
    return this.#once(`mask ${size}`, () => {
      const { longest } = this.#packed;
      const keys = this.positions;
      const mask = new Float32Array(this.#pieces.length * longest * keys);
      for (const [p, { begin, end, past }] of this.#pieces.entries()) {
        for (let i = 0; i < end - begin; i++) {
          const row = (p * longest + i) * keys;
          const first = size * Math.floor((past + i) / size);
          mask.fill(Number.NEGATIVE_INFINITY, row, row + first);
          if (first + size < keys) mask.fill(Number.NEGATIVE_INFINITY, row + first + size, row + keys);
        }
      }
      return new this.#runtime.Tensor("float32", mask, [this.#pieces.length, 1, longest, keys]);
    });
  }

  /** [pieces, 1, S, 1], false behind the last token of a piece. */
  queries(): Tensor {
    return this.#once("queries", () => {
      const { longest } = this.#packed;
      const real = new Uint8Array(this.#pieces.length * longest);
      for (const [p, { begin, end }] of this.#pieces.entries()) {
        real.fill(1, p * longest, p * longest + end - begin);
      }
      return new this.#runtime.Tensor("bool", real, [this.#pieces.length, 1, longest, 1]);
    });
  }

  #positionsOfRows(): Int32Array {
    // Tokens of a unit are counted piece by piece.
    const ofToken = this.#pieces.flatMap(({ begin, end, past }) =>
      Array.from({ length: end - begin }, (_, i) => past + i),
    );
    return Int32Array.from(this.#packed.tokenOf, (token) => ofToken[token] as number);
  }

  #once(key: string, make: () => Tensor): Tensor {
    let tensor = this.#made.get(key);
    if (!tensor) {
      tensor = make();
      this.#made.set(key, tensor);
    }
    return tensor;
  }
}

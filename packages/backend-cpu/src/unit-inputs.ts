import type { GroupedQueryAttentionSpec, LayerSpans } from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { PackedRows } from "./packed-rows.js";
import { chunkMask, type PastMaskRequest, pastMask, startMask } from "./past-masks.js";
import type { Feeds, Runtime } from "./sessions.js";
import type { Piece } from "./units.js";

/** What the attention of a unit's layers reads besides weights, made once for all layers that are alike. */
export class UnitInputs {
  /** Those of every layer. */
  readonly feeds: Feeds;
  readonly pieces: readonly Piece[];
  /** S, the new tokens of the piece with the most. */
  readonly longest: number;
  /** Tokens that the longest sequence has by now, its past included. */
  readonly positions: number;
  /** Its sequences have a past; otherwise all of them start here. */
  readonly behind: boolean;
  /** Each of its sequences has one new token behind a past; rows are sequences. */
  readonly step: boolean;
  readonly #runtime: Runtime;
  readonly #packed: PackedRows;
  readonly #made = new Map<string, Tensor>();

  constructor(runtime: Runtime, pieces: readonly Piece[], packed: PackedRows) {
    const { pad, unpad, longest } = packed;
    const { Tensor } = runtime;
    const lengths = Int32Array.from(pieces, ({ begin, end, past }) => past + end - begin - 1);
    this.pieces = pieces;
    this.longest = longest;
    this.positions = Math.max(...lengths) + 1;
    this.behind = pieces.some(({ past }) => past > 0);
    this.step = this.behind && longest === 1;
    this.feeds = {
      ...(!this.step && {
        pad: new Tensor("int32", pad, [pieces.length, longest]),
        unpad: new Tensor("int32", unpad, [unpad.length]),
      }),
      ...(!this.behind && {
        lengths: new Tensor("int32", lengths, [pieces.length]),
        total: new Tensor("int32", Int32Array.of(this.positions), []),
      }),
    };
    this.#runtime = runtime;
    this.#packed = packed;
  }

  /** int32 [N], the position of every row in its sequence. */
  rowPositions(): Tensor {
    return this.#once("positions", () => {
      const positions = this.#positionsOfRows();
      return new this.#runtime.Tensor("int32", positions, [positions.length]);
    });
  }

  /** int64 [N, 1], the same for the operator that rotates. */
  turns(): Tensor {
    return this.#once("turns", () => {
      const positions = BigInt64Array.from(this.#positionsOfRows(), BigInt);
      return new this.#runtime.Tensor("int64", positions, [positions.length, 1]);
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

  /** [pieces, 1, S, S], -Infinity between chunks of `size` positions; undefined when all lie in the first. */
  chunkMask(size: number): Tensor | undefined {
    if (this.positions <= size) return undefined;
    return this.#once(`mask ${size}`, () => {
      const mask = chunkMask(size, this.longest);
      const masks = new Float32Array(this.pieces.length * mask.length);
      for (const p of this.pieces.keys()) masks.set(mask, p * mask.length);
      return this.#mask(masks, [this.pieces.length, 1, this.longest, this.longest]);
    });
  }

  /** [1, spans, S, S], what spans hide from the tokens of sequences that start here. */
  startMask(spans: LayerSpans): Tensor {
    return this.#once(`start ${JSON.stringify(spans)}`, () =>
      this.#mask(startMask(spans, this.longest), [1, spans.length, this.longest, this.longest]),
    );
  }

  /** [pieces, 1 or heads, S, places and S], what is hidden from tokens behind a past; for a step [pieces, 1 or KV heads, 1 or heads of each, places and 1]. */
  pastMask(request: Omit<PastMaskRequest, "pieces" | "longest">): Tensor {
    const { group, ...sizes } = request;
    return this.#once(`past ${JSON.stringify({ ...sizes, span: group.span, own: group.own })}`, () => {
      const values = pastMask({ ...request, pieces: this.pieces, longest: this.longest });
      const heads = group.own ? [group.own.length, request.share] : [1, 1];
      const columns = request.places + this.longest;
      const [kvHeads, share] = heads as [number, number];
      const rows = this.step ? heads : [kvHeads * share, this.longest];
      return this.#mask(values, [this.pieces.length, ...rows, columns]);
    });
  }

  /** [pieces, 1, S, 1], false behind the last token of a piece. */
  queries(): Tensor {
    return this.#once("queries", () => {
      const { longest } = this.#packed;
      const real = new Uint8Array(this.pieces.length * longest);
      for (const [p, { begin, end }] of this.pieces.entries()) {
        real.fill(1, p * longest, p * longest + end - begin);
      }
      return new this.#runtime.Tensor("bool", real, [this.pieces.length, 1, longest, 1]);
    });
  }

  #positionsOfRows(): Int32Array {
    // Tokens of a unit are counted piece by piece.
    const ofToken = this.pieces.flatMap(({ begin, end, past }) =>
      Array.from({ length: end - begin }, (_, i) => past + i),
    );
    return Int32Array.from(this.#packed.tokenOf, (token) => ofToken[token] as number);
  }

  #mask(values: Float32Array, dims: readonly number[]): Tensor {
    return new this.#runtime.Tensor("float32", values, dims);
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

import { CoppiceError, type LayerMemory } from "@coppice/core";
import type { Tensor } from "onnxruntime-node";

/** What a layer computed of one input, unit by unit of the runs that start at it. */
export class CpuMemory implements LayerMemory {
  /** The runner that made it. */
  readonly owner: object;
  readonly #units: UnitMemory[] = [];
  #layer: number | undefined;
  #disposed = false;

  constructor(owner: object) {
    this.owner = owner;
  }

  get bytes(): number {
    return this.#units.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /**
   * What is known of unit `index` of a run whose first layer is `layer`.
   * @param rows that go through the layer
   * @throws COPPICE_BACKEND_DISPOSED; COPPICE_USAGE when it is of other runs
   */
  unit(layer: number, index: number, rows: number): UnitMemory {
    if (this.#disposed)
      throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the memory was disposed before this run");
    this.#layer ??= layer;
    this.#units[index] ??= new UnitMemory(rows);
    const unit = this.#units[index];
    if (this.#layer === layer && unit.rows === rows) return unit;
    throw new CoppiceError(
      "COPPICE_USAGE",
      `the memory is of layer ${this.#layer} and ${unit.rows} rows, the run of layer ${layer} and ${rows} rows`,
      { hint: "give every layer and every request a memory of its own" },
    );
  }

  dispose(): void {
    this.#disposed = true;
    this.#units.length = 0;
  }
}

/** What is known of the rows of one unit in the layer. */
export class UnitMemory {
  readonly rows: number;
  /** Outputs of experts, [hidden] each, by expert and row. */
  readonly #outputs = new Map<number, Float32Array>();
  #attended: { readonly normed: Tensor; readonly residual: Tensor } | undefined;
  #bytes = 0;

  constructor(rows: number) {
    this.rows = rows;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** What attention gave, [rows, hidden] each: what the experts read and what they add to. */
  get attended(): { readonly normed: Tensor; readonly residual: Tensor } | undefined {
    return this.#attended;
  }

  keepAttended(normed: Tensor, residual: Tensor): void {
    this.#attended = { normed, residual };
    this.#bytes += Float32Array.BYTES_PER_ELEMENT * (normed.size + residual.size);
  }

  output(expert: number, row: number): Float32Array | undefined {
    return this.#outputs.get(expert * this.rows + row);
  }

  /** @param output not to be written to any more */
  keepOutput(expert: number, row: number, output: Float32Array): void {
    this.#outputs.set(expert * this.rows + row, output);
    this.#bytes += output.byteLength;
  }
}

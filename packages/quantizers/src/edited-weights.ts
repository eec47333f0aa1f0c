import { dequantizeMatrix, type QuantizedMatrix, type TensorRef, type WeightReader } from "@coppice/core";

/** Changes the values of a tensor in place. */
export type WeightEdit = (values: Float32Array, ref: TensorRef) => void;

/** Weights with changes on the way from the files: each tensor is read, then changed by its edits in their order. */
export class EditedWeights implements WeightReader {
  readonly #weights: WeightReader;
  readonly #edits = new Map<string, WeightEdit[]>();
  readonly #quantized = new Map<string, QuantizedMatrix>();

  constructor(weights: WeightReader) {
    this.#weights = weights;
  }

  edit({ name }: TensorRef, edit: WeightEdit): void {
    this.#edits.set(name, [...(this.#edits.get(name) ?? []), edit]);
  }

  /** From now on the matrix is read as what this stands for. */
  replace({ name }: TensorRef, matrix: QuantizedMatrix): void {
    this.#quantized.set(name, matrix);
  }

  /** Reads matrices again as they were before `replace`. */
  forgetReplaced(): void {
    this.#quantized.clear();
  }

  async read(
    ref: TensorRef,
    options: { into?: Float32Array; signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    const quantized = this.#quantized.get(ref.name);
    if (quantized) return dequantizeMatrix(quantized, options.into);
    const values = await this.#weights.read(ref, options);
    for (const edit of this.#edits.get(ref.name) ?? []) edit(values, ref);
    return values;
  }
}

/** Multiplies the columns of a matrix, or the values of a vector, by factors. */
export function scaleColumns(factors: ArrayLike<number>): WeightEdit {
  return (values) => {
    for (let i = 0; i < values.length; i++) {
      values[i] = (values[i] as number) * (factors[i % factors.length] as number);
    }
  };
}

/** Divides the rows of a matrix, or the values of a vector, by factors. */
export function divideRows(factors: ArrayLike<number>): WeightEdit {
  return (values) => {
    const width = values.length / factors.length;
    for (let i = 0; i < values.length; i++) {
      values[i] = (values[i] as number) / (factors[Math.floor(i / width)] as number);
    }
  };
}

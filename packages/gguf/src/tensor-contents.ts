import type { Content } from "@coppice/checkpoint";
import {
  type CoppiceError,
  elementCount,
  type QuantizedMatrix,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";
import { unsupported } from "./architecture.js";
import { encodeCodes, holdsCodes } from "./encode-codes.js";
import { encodeTensorValues } from "./encode-values.js";
import type { GgufTensor } from "./model-tensors.js";
import { tensorBytes } from "./tensor-types.js";

/** Values that are read and encoded at a time: 4 MB of float32, so that memory does not grow with the tensors. */
const bandValues = 1 << 20;

/** The bytes that are encoded at present: contents are filled one after the other, each in several requests. */
interface Current {
  band?: Content;
  bytes: Uint8Array;
}

/** The bytes of tensors, encoded some rows at a time when they are asked for. All contents share one memory. */
export class TensorContents {
  readonly #weights: WeightReader;
  readonly #current: Current = { bytes: new Uint8Array(0) };

  constructor(weights: WeightReader) {
    this.#weights = weights;
  }

  /** The contents of one tensor, in order, without what fills it up. */
  of(tensor: GgufTensor): Content[] {
    return tensor.parts.flatMap((part) =>
      rowBands(part, tensor.headRows ?? 1).map((band) => this.#bandContent(tensor, band)),
    );
  }

  #bandContent(tensor: GgufTensor, ref: TensorRef): Content {
    const current = this.#current;
    const content: Content = {
      bytes: tensorBytes(tensor.type, elementCount(ref.shape)),
      fill: async (offset, into, signal) => {
        if (current.band !== content) {
          current.bytes = await this.#encode(tensor, ref, signal);
          current.band = content;
        }
        into.set(current.bytes.subarray(offset, offset + into.length));
      },
    };
    return content;
  }

  async #encode(tensor: GgufTensor, ref: TensorRef, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const { type, headRows } = tensor;
    const options = signal ? { signal } : {};
    const quantized = holdsCodes(type, ref) && (await this.#weights.readQuantized?.(ref, options));
    if (quantized) {
      const { bytes, bad } = encodeCodes(type, alternateRows(quantized, headRows));
      if (bad < 0) return bytes;
      throw tooLarge(`the scale of a group of ${ref.name}`, tensor);
    }
    const read = await this.#weights.read(ref, options);
    const values = alternateHalves(read, headRows, ref.shape[0] as number);
    const { bytes, bad } = encodeTensorValues(type, values);
    if (bad < 0) return bytes;
    throw tooLarge(
      `${type === "F16" ? `value ${values[bad]}` : "the scale of a block"} of ${ref.name}`,
      tensor,
    );
  }
}

function tooLarge(what: string, { name, type }: GgufTensor): CoppiceError {
  return unsupported(`${what} exceeds what ${type} can hold in ${name}`);
}

/**
 * A vector as it is, a matrix in bands of rows of about `bandValues` values. Packed codes are decoded as a whole, because
 * the zero points of several rows share a word.
 * @param unit rows that stay together
 */
function rowBands(ref: TensorRef, unit: number): TensorRef[] {
  const [rows, columns] = ref.shape as [number, number | undefined];
  if (columns === undefined || ref.scales?.format === "packed") return [ref];
  const high = unit * Math.max(1, Math.floor(bandValues / (unit * columns)));
  if (high >= rows) return [ref];
  const strides = ref.view?.strides ?? [columns, 1];
  const start = ref.view?.offset ?? 0;
  return Array.from({ length: Math.ceil(rows / high) }, (_, band) => ({
    ...ref,
    shape: [Math.min(high, rows - band * high), columns],
    view: { offset: start + band * high * (strides[0] as number), strides },
  }));
}

function alternateRows(matrix: QuantizedMatrix, headRows: number | undefined): QuantizedMatrix {
  const { codes, scales, rows } = matrix;
  return {
    ...matrix,
    codes: alternateHalves(codes, headRows, rows),
    scales: alternateHalves(scales, headRows, rows),
  };
}

/** Rows 0, D/2, 1, D/2 + 1, ... of every head of D rows; without heads the rows as they are. */
function alternateHalves<T extends Float32Array | Uint8Array>(
  values: T,
  headRows: number | undefined,
  rows: number,
): T {
  if (headRows === undefined) return values;
  const out = values.slice() as T;
  const width = values.length / rows;
  const half = headRows / 2;
  for (let row = 0; row < rows; row++) {
    const inHead = row % headRows;
    const from = row - inHead + (inHead % 2) * half + Math.floor(inHead / 2);
    out.set(values.subarray(from * width, (from + 1) * width), row * width);
  }
  return out;
}

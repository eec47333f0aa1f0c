import { type Content, encodeValues } from "@coppice/checkpoint";
import {
  CoppiceError,
  dtypeBytes,
  elementCount,
  packBits,
  type QuantizedMatrix,
  quantizedBits,
  quantizedGroups,
  type ScaleDType,
  type TensorRef,
  unpackBits,
  type WeightReader,
} from "@coppice/core";
import { madeContent, madeFor } from "./made-content.js";

/** Values that are read at once, 32 MiB: embeddings of large vocabularies are not held as a whole. */
const bandValues = 8 << 20;

/** Rows of a matrix in another order: the row that each new one is, -1 for zeros. */
export type RowOrder = Int32Array;

/** The values of a tensor, rows in order where one is given, in one of the float types of files. */
export function floatContents(
  weights: WeightReader,
  ref: TensorRef,
  dtype: ScaleDType,
  order?: RowOrder,
): Content[] {
  const [rows = 1] = ref.shape;
  const columns = elementCount(ref.shape) / rows;
  const whole = ref.view !== undefined || ref.scales !== undefined || order !== undefined;
  const high = whole ? rows : Math.max(1, Math.floor(bandValues / columns));
  const contents: Content[] = [];
  for (let first = 0; first < rows; first += high) {
    const count = Math.min(high, rows - first);
    const band = whole ? ref : rowsOf(ref, first, count);
    const bytes = (order?.length ?? count) * columns * dtypeBytes[dtype];
    contents.push(
      madeContent(bytes, async (signal) => {
        const values = await weights.read(band, signal ? { signal } : {});
        return floatBytes(order ? inOrder(values, order, columns) : values, dtype);
      }),
    );
  }
  return contents;
}

/** Some rows of a plain tensor. */
function rowsOf(ref: TensorRef, first: number, count: number): TensorRef {
  const [rows = 1, ...rest] = ref.shape;
  const bytes = (ref.end - ref.begin) / rows;
  const begin = ref.begin + first * bytes;
  return { ...ref, shape: [count, ...rest], begin, end: begin + count * bytes };
}

/** Values that are of this dtype, in its bytes. */
export function floatBytes(values: Float32Array, dtype: ScaleDType): Uint8Array {
  if (dtype === "F32") return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const bytes = new Uint8Array(values.length * dtypeBytes[dtype]);
  encodeValues(dtype, values, bytes);
  return bytes;
}

/** What a graph holds of a quantized matrix, byte for byte. */
export interface QuantizedContents {
  readonly codes: Content;
  readonly scales: Content;
  readonly zeroPoints?: Content;
}

/**
 * The codes of a packed tensor as they are, rows in order where one is given; it is read once. Groups that are larger than
 * those of the form are split.
 */
export function quantizedContents(
  weights: WeightReader,
  ref: TensorRef,
  { bits, groupSize, scales: dtype, asymmetric }: PackedForm,
  order?: RowOrder,
): QuantizedContents {
  const [rows, columns] = ref.shape as [number, number];
  const groups = columns / groupSize;
  const height = order?.length ?? rows;
  const matrix = madeFor(asymmetric ? 3 : 2, async (signal): Promise<QuantizedMatrix> => {
    const found = await weights.readQuantized?.(ref, signal ? { signal } : {});
    if (found) return splitGroups(found, groupSize);
    throw new CoppiceError("COPPICE_INTERNAL", `${ref.name} is packed, and its reader gives no codes`);
  });
  const part = <T extends Uint8Array | Float32Array>(
    width: number,
    bytes: number,
    values: (matrix: QuantizedMatrix) => T,
    encode: (values: T) => Uint8Array,
  ) =>
    madeContent(height * bytes, async (signal) => {
      const all = values(await matrix(signal));
      return encode(order ? inOrder(all, order, width) : all);
    });
  const codeBytes = (columns * bits) / 8;
  const zeroBytes = Math.ceil((groups * bits) / 8);
  const same = (bytes: Uint8Array) => bytes;
  return {
    codes: part(codeBytes, codeBytes, ({ codes }) => codes, same),
    scales: part(
      groups,
      groups * dtypeBytes[dtype],
      ({ scales }) => scales,
      (values) => floatBytes(values, dtype),
    ),
    ...(asymmetric && {
      zeroPoints: part(zeroBytes, zeroBytes, ({ zeroPoints }) => zeroPoints as Uint8Array, same),
    }),
  };
}

/** The same matrix in smaller groups: scales and zero points are repeated, codes stay as they are. */
function splitGroups(matrix: QuantizedMatrix, groupSize: number): QuantizedMatrix {
  const { rows, columns, bits, scales, zeroPoints } = matrix;
  const times = matrix.groupSize / groupSize;
  if (times === 1) return matrix;
  const zeros = zeroPoints && unpackBits(zeroPoints, rows, columns / matrix.groupSize, bits);
  return {
    ...matrix,
    groupSize,
    scales: Float32Array.from(
      { length: scales.length * times },
      (_, i) => scales[Math.floor(i / times)] as number,
    ),
    ...(zeros && {
      zeroPoints: packBits(
        Uint8Array.from({ length: zeros.length * times }, (_, i) => zeros[Math.floor(i / times)] as number),
        rows,
        bits,
      ),
    }),
  };
}

/** How a packed tensor is stored. */
export interface PackedForm {
  readonly bits: QuantizedMatrix["bits"];
  readonly groupSize: number;
  readonly scales: ScaleDType;
  readonly asymmetric: boolean;
}

/**
 * @returns undefined for tensors that are not packed
 * @throws COPPICE_EXPORT_UNSUPPORTED for bits and groups that ONNX Runtime does not execute
 */
export function packedForm({ scales, name }: TensorRef): PackedForm | undefined {
  if (scales?.format !== "packed") return undefined;
  const { bits, columns } = scales;
  checkExecuted(name, "bits per weight", bits, quantizedBits);
  checkExecuted(name, "columns per group", columns, quantizedGroups);
  const { dtype } = scales.scales;
  if (dtype !== "F32" && dtype !== "F16" && dtype !== "BF16") {
    throw new CoppiceError(
      "COPPICE_FORMAT_DTYPE",
      `the scales of ${name} are ${dtype}, expected F32, F16 or BF16`,
    );
  }
  return {
    bits,
    groupSize: columns,
    scales: dtype,
    asymmetric: scales.zeroPoints !== undefined,
  };
}

function checkExecuted(name: string, what: string, found: number, executed: readonly number[]): void {
  if (executed.includes(found)) return;
  throw new CoppiceError(
    "COPPICE_EXPORT_UNSUPPORTED",
    `${name} has ${found} ${what}; ONNX Runtime executes ${executed.join(", ")}`,
    { hint: "quantize the original checkpoint with one of those", details: { tensor: name, found } },
  );
}

function inOrder<T extends Uint8Array | Float32Array>(values: T, order: RowOrder, width: number): T {
  const laid = new (values.constructor as new (length: number) => T)(order.length * width);
  for (const [row, from] of order.entries()) {
    if (from >= 0) laid.set(values.subarray(from * width, (from + 1) * width), row * width);
  }
  return laid;
}

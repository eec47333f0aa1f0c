import { CoppiceError, dtypeBytes, elementCount, type TensorRef, type TensorScales } from "@coppice/core";
import { decodeValues } from "./decode.js";
import { decodeFloat4 } from "./float4.js";

/** Number of elements that lie from `begin` to `end`: a view may pick some of them. */
export function storedElements(ref: TensorRef): number {
  return (ref.end - ref.begin) / elementBytes(ref);
}

/** Bytes of a stored element: half a byte for MXFP4, a part of a byte for packed codes of fewer bits. */
export function elementBytes({ dtype, scales }: TensorRef): number {
  if (scales?.format === "packed") return scales.bits / 8;
  return scales?.format === "mxfp4" ? 0.5 : dtypeBytes[dtype];
}

/**
 * Values of stored elements from `first` on (even for MXFP4), scales applied.
 * @param bytes those of the elements, aligned to their size
 * @param factors one per block, of tensors with scales
 * @returns the position of the first integer that float32 cannot hold, and of tensors without view and scales also of
 * the first value that is not finite; -1 when there is none
 */
export function decodeElements(
  ref: TensorRef,
  first: number,
  bytes: Uint8Array,
  factors: Float32Array | undefined,
  out: Float32Array,
): number {
  let bad = -1;
  if (ref.scales?.format === "mxfp4") decodeFloat4(bytes, out);
  else bad = decodeValues(ref.dtype, bytes, out);
  if (!ref.view && !ref.scales) return bad;
  // What lies between the elements of a view belongs to others, so only its own values are judged, and later.
  if (bad >= 0 && !Number.isFinite(out[bad])) bad = -1;
  if (ref.scales) applyScales(out, first, ref.scales, factors as Float32Array);
  return bad;
}

/** Multiplies stored elements from `first` on by the scale of their block, each product rounded to float32 once. */
function applyScales(
  values: Float32Array,
  first: number,
  { stored, rows, columns }: TensorScales,
  factors: Float32Array,
): void {
  const width = stored[1];
  const across = Math.ceil(width / columns);
  for (let at = 0; at < values.length; ) {
    const column = (first + at) % width;
    const row = (first + at - column) / width;
    const factor = factors[Math.floor(row / rows) * across + Math.floor(column / columns)] as number;
    const end = Math.min(values.length, at + Math.min(columns - (column % columns), width - column));
    for (; at < end; at++) values[at] = (values[at] as number) * factor;
  }
}

/** What to read for the scales of a tensor: codes of MXFP4 scales are exponents. */
export function scalesRef({ format, scales }: TensorScales): TensorRef {
  return format === "mxfp4" ? { ...scales, dtype: "F8_E8M0" } : scales;
}

/** @throws COPPICE_INTERNAL when a description asks for elements that are not there */
export function checkStored(ref: TensorRef): void {
  const { shape, view, scales } = ref;
  const held = storedElements(ref);
  const last = view
    ? shape.reduce((at, size, axis) => at + (size - 1) * (view.strides[axis] as number), view.offset)
    : elementCount(shape) - 1;
  const blocks =
    scales && Math.ceil(scales.stored[0] / scales.rows) * Math.ceil(scales.stored[1] / scales.columns);
  const fault =
    elementCount(shape) > 0 && (view ? last >= held || view.offset < 0 : last !== held - 1)
      ? `${held} stored elements do not fit its shape [${shape.join(", ")}]`
      : scales && scales.stored[0] * scales.stored[1] !== held
        ? `${held} stored elements are no [${scales.stored.join(", ")}] matrix`
        : scales && elementCount(scales.scales.shape) !== blocks
          ? `its ${blocks} blocks have ${elementCount(scales.scales.shape)} scales in ${scales.scales.name}`
          : undefined;
  if (fault !== undefined) throw new CoppiceError("COPPICE_INTERNAL", `${ref.name}: ${fault}`);
}

import { encodeValues, type WriteTensor } from "@coppice/checkpoint";
import {
  attentionTensors,
  CoppiceError,
  dtypeBytes,
  elementCount,
  type MoeModel,
  mlpTensors,
  normTensors,
  roundToDtype,
  routerTensors,
  type TensorRef,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import type { FormattedMatrix } from "./format-rules.js";

/** The tensors of a model's description that are not quantized, each once. */
export function floatTensors(model: MoeModel, quantized: readonly FormattedMatrix[]): TensorRef[] {
  const all = [model.embedding, model.head, ...normTensors(model.finalNorm)];
  if (model.headBias) all.push(model.headBias);
  for (const { attention, attentionNorm, feedForward, feedForwardNorm } of model.layers) {
    all.push(...attentionTensors(attention), ...normTensors(attentionNorm), ...normTensors(feedForwardNorm));
    if (feedForward.kind === "dense") all.push(...mlpTensors(feedForward.mlp));
    if (feedForward.kind !== "moe") continue;
    const { experts, shared, sharedGate } = feedForward;
    all.push(...routerTensors(feedForward), ...experts.flatMap(mlpTensors));
    if (shared) all.push(...mlpTensors(shared));
    if (sharedGate) all.push(sharedGate);
  }
  const left = new Map(all.map((ref) => [ref.name, ref]));
  for (const { weight } of quantized) left.delete(weight.name);
  return [...left.values()];
}

/** @throws COPPICE_FAMILY_UNSUPPORTED for tensors that `writeFloats` cannot write */
export function checkWritable(floats: readonly TensorRef[]): void {
  for (const { name, view, scales } of floats) {
    if (!view && !scales) continue;
    throw new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      `${name} is stored in a form in which changed values cannot be written back`,
      {
        hint: "quantize it as well, or use a method that changes no other weights",
        details: { tensor: name },
      },
    );
  }
}

/** Values that are read at once, 32 MiB: embeddings of large vocabularies are not held as a whole. */
const bandValues = 8 << 20;

/**
 * Reads tensors that are copied as they are.
 * @throws COPPICE_FORMAT_NAN for values that are no numbers
 */
export async function checkFinite(
  floats: readonly TensorRef[],
  weights: WeightReader,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const ref of floats) {
    const [rows = 1, columns = 1] = ref.shape;
    const whole = ref.shape.length !== 2 || ref.view !== undefined || ref.scales !== undefined;
    const high = whole ? rows : Math.max(1, Math.floor(bandValues / columns));
    for (let first = 0; first < rows; first += high) {
      const shape = [Math.min(high, rows - first), columns];
      const band = { ...ref, shape, view: { offset: first * columns, strides: [columns, 1] } };
      await weights.read(whole ? ref : band, signal ? { signal } : {});
    }
  }
}

/** Writes a tensor in its dtype, rounded to nearest. */
export async function writeFloats(
  ref: TensorRef,
  weights: WeightReader,
  write: WriteTensor,
  signal: AbortSignal | undefined,
): Promise<void> {
  throwIfAborted(signal, `writing ${ref.name}`);
  const values = await weights.read(ref);
  roundToDtype(values, ref.dtype);
  const bytes = new Uint8Array(elementCount(ref.shape) * dtypeBytes[ref.dtype]);
  encodeValues(ref.dtype, values, bytes);
  await write(ref.name, bytes);
}

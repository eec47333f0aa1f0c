import { CoppiceError, type MoeModel, type QuantizedBits } from "@coppice/core";
import { type ExpertForm, type PaddingPlace, type RowPrecision, routingObstacle } from "@coppice/onnx";

/** Where an exported folder runs. */
export const exportTargets = ["cpu", "wasm", "webgpu"] as const;
export type ExportTarget = (typeof exportTargets)[number];

export interface TargetForms {
  readonly experts: ExpertForm;
  readonly padding: PaddingPlace;
  /** Runs of one token need not give what is present (`decoderGraph`). */
  readonly sparesPresent: boolean;
  /** Keep an embedding of two bytes per value as it is, and widen the rows that are looked up. */
  readonly halfEmbedding: boolean;
  /** How matrices of so many bits, in groups of so many columns, take the rows that they multiply. */
  rowPrecision(bits: QuantizedBits, groupSize: number): RowPrecision;
  /** Most columns of a group in a matrix of so many bits that multiplies rows in int8. */
  readonly int8Groups: Readonly<Record<QuantizedBits, number>>;
}

/**
 * On CPUs, int8 rows decode 1.25 times as fast as rows as they are at 4 bits. In groups of 128 a prompt takes 1.06 times as long then;
 * in smaller ones 1.17 times, so that they take rows as they are, which is exact. At 2 and 8 bits ONNX Runtime widens the whole matrix
 * for every token unless rows are int8, which takes thirty times as long.
 */
const cpuRows = (bits: QuantizedBits, groupSize: number): RowPrecision =>
  bits === 4 && groupSize < 128 ? "float32" : "int8";

/**
 * Rows in int8 have one scale for as many columns as a group of the matrix has, so that large groups round more: with these, hidden
 * states behind a layer have a cosine of at least .9999 (`npm run check:layers`); 2 bits in groups of 64 had .99988.
 */
const int8Groups = { 2: 32, 4: 128, 8: 128 } as const;

/**
 * What each target executes. ONNX Runtime 1.30 on WebGPU has no operator whose result has a size that depends on values
 * (NonZero, and Split by sizes that the GPU computes), and its QMoE ignores that gate weights are not to be normalized.
 * Its attention was proven right without a mask, so that padding has to stand behind the tokens there.
 */
export const targetForms: Readonly<Record<ExportTarget, TargetForms>> = {
  cpu: {
    experts: "grouped",
    padding: "anywhere",
    sparesPresent: true,
    halfEmbedding: true,
    rowPrecision: cpuRows,
    int8Groups,
  },
  wasm: {
    experts: "grouped",
    padding: "anywhere",
    sparesPresent: false,
    halfEmbedding: true,
    rowPrecision: () => "float32",
    int8Groups,
  },
  webgpu: {
    experts: "dense",
    padding: "behind",
    sparesPresent: false,
    halfEmbedding: false,
    rowPrecision: () => "float32",
    int8Groups,
  },
};

/**
 * Refuses models that no graph of a target can express, before anything is written.
 * @throws COPPICE_EXPORT_UNSUPPORTED
 */
export function checkExpressible(model: MoeModel, target: ExportTarget): void {
  const refuse = (reason: string, layer?: number) =>
    new CoppiceError(
      "COPPICE_EXPORT_UNSUPPORTED",
      `${model.family} cannot become an ONNX graph for ${target}: ${reason}`,
      { details: { family: model.family, target, layer } },
    );
  if (model.editOnly !== undefined) throw refuse(model.editOnly);
  for (const { feedForward, index } of model.layers) {
    if (feedForward.kind !== "moe") continue;
    const { router, experts } = feedForward;
    const obstacle = routingObstacle(router);
    if (obstacle !== undefined) throw refuse(`in layer ${index}, ${obstacle}`, index);
    if (targetForms[target].experts === "dense" && router.scalesInput && experts[0]?.downBias) {
      throw refuse(`layer ${index} weights what experts read, and its experts have biases`, index);
    }
  }
}

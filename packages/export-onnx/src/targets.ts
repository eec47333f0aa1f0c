import { CoppiceError, type MoeModel, type RotarySpec } from "@coppice/core";
import { type ExpertForm, routingObstacle } from "@coppice/onnx";

/** Where an exported folder runs. */
export const exportTargets = ["cpu", "wasm", "webgpu"] as const;
export type ExportTarget = (typeof exportTargets)[number];

export interface TargetForms {
  readonly experts: ExpertForm;
  readonly halfEmbedding: boolean;
}

/**
 * What each target executes. ONNX Runtime 1.30 on WebGPU has no operator whose result has a size that depends on values
 * (NonZero, and Split by sizes that the GPU computes), and its QMoE ignores that gate weights are not to be normalized.
 */
export const targetForms: Readonly<Record<ExportTarget, TargetForms>> = {
  cpu: { experts: "grouped", halfEmbedding: true },
  wasm: { experts: "grouped", halfEmbedding: true },
  webgpu: { experts: "dense", halfEmbedding: false },
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
      { hint: "other backends run it from the checkpoint", details: { family: model.family, target, layer } },
    );
  if (model.editOnly !== undefined) throw refuse(model.editOnly);
  for (const { attention, feedForward, index } of model.layers) {
    if (attention.kind === "gqa" && attention.chunk !== undefined) {
      throw refuse(`layer ${index} limits attention to chunks of ${attention.chunk} positions`, index);
    }
    if (attention.kind === "gqa" && attention.temperature) {
      throw refuse(`layer ${index} scales queries by their position`, index);
    }
    if (feedForward.kind !== "moe") continue;
    const { router, experts } = feedForward;
    const obstacle = routingObstacle(router);
    if (obstacle !== undefined) throw refuse(`in layer ${index}, ${obstacle}`, index);
    if (targetForms[target].experts === "dense" && router.scalesInput && experts[0]?.downBias) {
      throw refuse(`layer ${index} weights what experts read, and its experts have biases`, index);
    }
  }
}

/**
 * The longest text that a graph runs: rotary frequencies that change with the length of the text are those of the
 * original context in it.
 */
export function exportedPositions({ layers, contextLength }: MoeModel): number {
  const limits = layers.map(({ attention }) =>
    attention.kind === "other" ? contextLength : rotaryLimit(attention.rotary, contextLength),
  );
  return Math.min(contextLength, ...limits);
}

function rotaryLimit(rotary: RotarySpec | undefined, contextLength: number): number {
  const scaling = rotary?.scaling;
  return scaling?.kind === "dynamic" || scaling?.kind === "longrope"
    ? scaling.originalContext
    : contextLength;
}

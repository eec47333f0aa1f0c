import { CoppiceError, type MoeModel, type TensorRef } from "@coppice/core";

/** A matrix whose width can be chosen. */
export interface WidthMatrix {
  /** Unique among the matrices. */
  readonly name: string;
  readonly weight: TensorRef;
  /** What it does in its layer, such as `gate`. */
  readonly role: string;
  /** Absent for the embedding and the head. */
  readonly layer?: number;
  /** Of a routed expert: its number. */
  readonly expert?: number;
}

/** What it costs in quality that one matrix is quantized, all else being as it is. */
export interface MatrixLoss {
  readonly name: string;
  readonly role: string;
  readonly layer?: number;
  readonly expert?: number;
  /** One per width that was measured, in their order. */
  readonly widths: readonly WidthLoss[];
}

export interface WidthLoss {
  readonly bits: number;
  /**
   * KL divergence of the predictions from those of the whole model, in nats per position. That of the matrices of all
   * experts of a layer and role is measured at once and shared out by their output errors.
   */
  readonly loss: number;
  /** Of experts: Σ_t (g ‖f'(x_t) - f(x_t)‖)² over its tokens, g the gate weight, f' the output with this matrix quantized. */
  readonly error?: number;
}

/** What it costs that a routed expert is dropped, and how much it is used. */
export interface ExpertLoss {
  readonly layer: number;
  readonly expert: number;
  /** Share of the layer's choices that went to it. */
  readonly share: number;
  /** Share of the layer's gate weights that it had. */
  readonly gateShare: number;
  /** Absent where one expert cannot be dropped: as many experts as the top-k, or a router with groups. */
  readonly dropped?: DroppedLoss;
}

export interface DroppedLoss {
  /**
   * As `WidthLoss.loss`; of the experts of a layer whose errors are smallest these add up to what dropping them together
   * costs, which is more than each alone. See `dropLosses`.
   */
  readonly loss: number;
  /** Σ_t ‖y'_t - y_t‖² of the block, when this expert alone is dropped and its tokens go to others. */
  readonly error: number;
}

/** What the parts of a model lose with fewer bits, measured on some text. */
export interface Sensitivity {
  /** Fingerprint of the model. */
  readonly model: string;
  /**
   * What was quantized at once of an expert: all its matrices, whose losses and errors are then parts alike of what the
   * expert loses, or one after the other.
   */
  readonly quantized: "experts" | "matrices";
  /** Positions whose predictions were compared. */
  readonly positions: number;
  readonly matrices: readonly MatrixLoss[];
  readonly experts: readonly ExpertLoss[];
}

/** @throws COPPICE_STATS_MODEL when it was measured on another model */
export function checkModel(model: MoeModel, sensitivity: Sensitivity): void {
  if (sensitivity.model === model.fingerprint) return;
  throw new CoppiceError(
    "COPPICE_STATS_MODEL",
    `the sensitivity was measured on the model "${sensitivity.model}", this one is "${model.fingerprint}"`,
  );
}

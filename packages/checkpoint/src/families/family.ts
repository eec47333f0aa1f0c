import type { RouterSpec } from "@coppice/core";
import type { ConfigReader } from "../config.js";

/** Names of the three matrices of an expert or dense MLP; see `FamilyDescription` for the placeholders. */
export interface MlpNames {
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

/** How the experts of a layer lie in the files. */
export type ExpertLayout =
  | { readonly kind: "separate"; readonly router: string; readonly experts: MlpNames }
  | {
      /** `gateUp` [experts, 2 · width, hidden] with the gate rows first, `down` [experts, hidden, width]. */
      readonly kind: "fused";
      readonly router: string;
      readonly gateUp: string;
      readonly down: string;
    };

/**
 * A model family as data: where its tensors and settings are, and which of the known computations it uses.
 * In tensor names `{l}` stands for the layer and `{e}` for the expert. Lists of config keys are in the order of
 * preference; surgery rewrites every one that is present.
 */
export interface FamilyDescription {
  /** The `model_type` of its stock implementation. */
  readonly name: string;
  /** How people write it. */
  readonly title: string;
  readonly config: {
    readonly experts: readonly string[];
    readonly topK: readonly string[];
    /** Rows of an expert's gate and up. */
    readonly expertWidth: readonly string[];
    /** Rows of a dense layer's gate and up, where the family has such layers. */
    readonly denseWidth?: readonly string[];
    /** Values of the stock implementation for keys that a config may leave out. */
    readonly defaults: { readonly epsilon: number; readonly theta: number; readonly contextLength: number };
  };
  readonly tensors: {
    readonly embedding: string;
    readonly finalNorm: string;
    readonly head: string;
    readonly attentionNorm: string;
    readonly feedForwardNorm: string;
    /** Without `.weight` and `.bias`. */
    readonly query: string;
    readonly key: string;
    readonly value: string;
    readonly output: string;
    /** Norms over each head, of shape [head_dim], where the family has them. */
    readonly queryNorm?: string;
    readonly keyNorm?: string;
    readonly dense?: MlpNames;
  };
  /** The layouts in use, the stock one of published files first. */
  readonly layouts: readonly ExpertLayout[];
  readonly router: {
    readonly order: RouterSpec["order"];
    /** Whether the chosen probabilities are divided by their sum: always, or as a config key says. */
    readonly normalize: true | { readonly key: string; readonly fallback: boolean };
  };
  /** Config key that gives all attention projections a bias, where the family has one. */
  readonly attentionBias?: string;
  /** The sliding attention window of a config, or undefined for full attention. */
  readonly slidingWindow: (config: ConfigReader) => number | undefined;
  /** Which layers have experts; absent: all. */
  readonly moeLayers?: (config: ConfigReader) => (layer: number) => boolean;
}

/** Fills in a tensor name. */
export function tensorName(pattern: string, layer: number, expert?: number): string {
  const name = pattern.replace("{l}", String(layer));
  return expert === undefined ? name : name.replace("{e}", String(expert));
}

import type {
  ActivationSpec,
  GroupedQueryWeights as GroupedQueryParts,
  LatentWeights as LatentParts,
  NormSpec,
} from "@coppice/core";
import type { ExpertStack, GpuBuffer, GpuMatrix } from "@coppice/kernels-webgpu";

/** Weight in blocks of one row, [outputs, inputs]. */
export interface Linear {
  readonly weight: GpuMatrix;
  readonly bias: GpuBuffer | undefined;
  readonly inputs: number;
  readonly outputs: number;
}

export interface Norm {
  readonly kind: NormSpec["kind"];
  readonly epsilon: number;
  readonly weight: GpuBuffer | undefined;
  readonly bias: GpuBuffer | undefined;
}

export type GroupedQueryWeights = GroupedQueryParts<Linear, Norm, GpuBuffer>;
export type LatentWeights = LatentParts<Linear, Norm>;

/** One MLP that every token goes through. */
export interface Mlp {
  readonly width: number;
  readonly activation: ActivationSpec;
  /** Up, and gate in turn with it where there is one: one block per hidden unit. */
  readonly units: GpuMatrix;
  readonly unitsBias: GpuBuffer | undefined;
  readonly down: Linear;
}

/** The experts of a layer, or those that a plan made, one block each. */
export interface Experts {
  readonly width: number;
  readonly activation: ActivationSpec;
  /** Whether up and gate lie in turn. */
  readonly gated: boolean;
  readonly units: ExpertStack;
  readonly down: ExpertStack;
}

/** Biases of one expert as they are stored, kept for merging. */
export interface ExpertBiases {
  readonly gate: Float32Array | undefined;
  readonly up: Float32Array | undefined;
  readonly down: Float32Array | undefined;
}

export interface Router {
  /** [experts, hidden] */
  readonly weight: Float32Array;
  readonly bias: Float32Array | undefined;
  readonly correction: Float32Array | undefined;
}

export interface MoeWeights {
  readonly router: Router;
  readonly experts: Experts;
  readonly biases: readonly ExpertBiases[];
  readonly shared: Mlp | undefined;
  /** In blocks of one row, [1, hidden]. */
  readonly sharedGate: GpuMatrix | undefined;
}

export interface LayerWeights {
  readonly attentionNorm: Norm;
  readonly attention: GroupedQueryWeights | LatentWeights;
  readonly feedForwardNorm: Norm;
  readonly moe: MoeWeights | undefined;
  readonly dense: Mlp | undefined;
}

export interface ModelWeights {
  /** Undefined when the first layer is not among those loaded. */
  readonly embedding: GpuMatrix | undefined;
  readonly layers: ReadonlyMap<number, LayerWeights>;
  /** Undefined when the last layer is not among those loaded. */
  readonly head: { readonly norm: Norm; readonly linear: Linear } | undefined;
  /** Everything that the model holds on the device. */
  readonly owned: Owned;
}

/** What is disposed together. */
export interface Owned {
  dispose(): void;
}

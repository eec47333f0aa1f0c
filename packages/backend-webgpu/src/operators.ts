import {
  type AttentionShape,
  type Gpu,
  type GpuBuffer,
  type MatmulCall,
  matmul,
  type NormCall,
  norm,
} from "@coppice/kernels-webgpu";

/** Causal attention of sequences of equal length, all of their tokens at once. */
export interface PromptAttention {
  readonly shape: AttentionShape;
  readonly sequences: number;
  /** Tokens of each sequence. */
  readonly length: number;
  /** [sequences, length, heads, keyDim] */
  readonly queries: GpuBuffer;
  /** [sequences, length, kvHeads, keyDim] */
  readonly keys: GpuBuffer;
  readonly values: GpuBuffer;
  /** [sequences, length, heads, valueDim] */
  readonly y: GpuBuffer;
}

/** What computes the operators that ONNX Runtime has as well. Work goes on behind what was recorded before, in the order of calls. */
export interface Operators {
  /** Whether the weights of projections that are no codes are wanted in float32. */
  readonly wide: boolean;
  /** Whether a row of many gives the same bits beside any others; only then runs are computed together. */
  readonly independent: boolean;
  multiply(call: MatmulCall): Promise<void>;
  normalize(call: NormCall): Promise<void>;
  /** @returns false: it has none that is right, and did nothing */
  attend(call: PromptAttention): Promise<boolean>;
  dispose(): Promise<void>;
}

/** Our kernels; their attention takes tables of a batch, and is called where those are. */
export function ownOperators(gpu: Gpu): Operators {
  return {
    wide: false,
    independent: true,
    multiply: async (call) => matmul(gpu, call),
    normalize: async (call) => norm(gpu, call),
    attend: async () => false,
    dispose: async () => {},
  };
}

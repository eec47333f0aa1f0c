import type { QuantizedFormat, QuantizedMatrix, ScaleDType } from "./quantized-matrix.js";

/** Chooses codes and scales of weights. Created by a plugin of kind "quantizer". */
export interface Quantizer {
  readonly needs: {
    /** Sums over what the matrices multiply; without them the quantizer works from the weights alone. */
    readonly inputs: boolean;
  };
  /**
   * Quantizes one matrix. Never changes `weights`.
   * @throws COPPICE_USAGE for formats that it cannot use
   */
  quantize(request: QuantizeRequest): Promise<QuantizedResult>;
  /**
   * Factors of the channels of an activation: the columns of all that read it are multiplied by them, and what makes it
   * (a norm, or the rows of a linear) is divided by them, which changes nothing but how well the columns can be quantized.
   * Called before `quantize`, for activations for which that is possible.
   * @returns [K] positive numbers, or undefined where nothing should change
   */
  scaleInputs?(request: ScaleInputsRequest): Promise<Float64Array | undefined>;
}

/** Sums over the inputs x of one matrix, or of several that read the same: the tokens of calibration data. */
export interface InputSums {
  /** Number of inputs that were summed. */
  readonly tokens: number;
  /** [K, K], sum of x xᵀ. */
  readonly gram: Float64Array;
  /** [K], sum of |x|. */
  readonly magnitude: Float64Array;
}

export interface QuantizeRequest {
  /** Name of the tensor, for messages. */
  readonly name: string;
  /** [rows, columns], finite. */
  readonly weights: Float32Array;
  readonly rows: number;
  readonly columns: number;
  readonly format: QuantizedFormat;
  /** In which scales are stored: those of the result are values of this dtype. */
  readonly scales: ScaleDType;
  /** Absent where the quantizer does not ask for it, and for matrices of which the inputs are not known. */
  readonly inputs?: InputSums;
  readonly signal?: AbortSignal;
}

export interface QuantizedResult {
  readonly matrix: QuantizedMatrix;
  /** Why another, simpler method was used for this matrix; absent: it was not. */
  readonly fallback?: string;
}

/** All matrices that read one activation. */
export interface ScaleInputsRequest {
  /** Name of the activation, for messages. */
  readonly name: string;
  /** K */
  readonly columns: number;
  /** The matrices that will be quantized; those that read the activation and stay as they are do not matter. */
  readonly readers: readonly Omit<QuantizeRequest, "signal">[];
  /** Over all inputs of the activation. */
  readonly inputs: InputSums;
  /** [columns]; channels with the same number must get the same factor; absent: each may have its own. */
  readonly tied?: Int32Array;
  readonly signal?: AbortSignal;
}

import type { Generated } from "@coppice/evaluate";
import type { ModelPiece } from "@coppice/runtime";

/** A model that writes, however it is computed. */
export interface WritingModel {
  encode(prompt: string): Int32Array;
  decode(tokens: ArrayLike<number>): string;
  /** The next token is computed when it is asked for. */
  stream(
    tokens: Int32Array,
    options: { readonly experts: true; readonly maxTokens: number; readonly signal: AbortSignal },
  ): AsyncGenerator<ModelPiece, Generated, undefined>;
  dispose(): Promise<void>;
}

import type { Choices } from "./expert-log.js";
import type { Manifest } from "./manifest.js";
import type { Problem } from "./problem.js";

/** What computes the models: ONNX Runtime on the processor, or kernels of our own on the graphics device. */
export type Engine = "wasm" | "webgpu";

/** What the page asks of the worker. */
export type Request =
  | {
      readonly kind: "load";
      readonly base: string;
      readonly engine: Engine;
      readonly manifest: Manifest;
      /** Of WebAssembly. */
      readonly threads: number;
    }
  /** Ends what is being written, and writes anew. `run` comes back with every answer. */
  | { readonly kind: "write"; readonly run: number; readonly prompt: string; readonly maxTokens: number }
  | { readonly kind: "stop" }
  | { readonly kind: "dispose" };

/** What the worker answers; `model` is a place in the list of `load`. */
export type Answer =
  | { readonly kind: "progress"; readonly loaded: number }
  /** The next model of the list can write; `left` are still to be loaded. */
  | { readonly kind: "ready"; readonly left: number }
  | {
      readonly kind: "begin";
      readonly run: number;
      readonly model: number;
      readonly prompt: readonly TokenText[];
    }
  | ({ readonly kind: "piece"; readonly run: number; readonly model: number } & Piece)
  | { readonly kind: "end"; readonly run: number; readonly model: number; readonly finish: Finish }
  /** Without `run`, of the loading; nothing can be written then. */
  | { readonly kind: "failed"; readonly run?: number; readonly problem: Problem }
  | { readonly kind: "disposed" };

export type Finish = "end" | "stop" | "length" | "stopped";

export interface TokenText {
  readonly token: number;
  readonly text: string;
}

/** One step of a model. */
export interface Piece {
  /** Absent for text that was held back to the end. */
  readonly token?: number;
  readonly text: string;
  /** Time of this step alone. */
  readonly milliseconds: number;
  /** Experts of every layer that ran for it. */
  readonly choices: readonly Choices[];
}

import { isCoppiceError } from "@coppice/core";
import { MissingModels } from "./manifest.js";

/** An error as a user meets it. */
export interface Problem {
  readonly message: string;
  readonly advice: string;
}

/** Words of browsers, of WebAssembly and of ONNX Runtime for memory that they do not get. */
const noMemory =
  /out of memory|bad_alloc|could not allocate|failed to allocate|allocation failed|array buffer allocation|invalid array length|memory access out of bounds/i;

/** What happened, and what to do about it. */
export function problemOf(error: unknown): Problem {
  const message = error instanceof Error ? error.message : String(error);
  if (noMemory.test(message)) {
    return {
      message: `The browser gives this page too little memory (${message}).`,
      advice: "Close other tabs and load again, or make smaller models: fewer bits, fewer experts.",
    };
  }
  if (error instanceof MissingModels || isCoppiceError(error, "COPPICE_FORMAT_MISSING_FILE")) {
    return { message, advice: "Make the models with `npm run models`, then load again." };
  }
  if (
    isCoppiceError(error, "COPPICE_IO_READ") ||
    isCoppiceError(error, "COPPICE_FORMAT_TRUNCATED") ||
    error instanceof TypeError
  ) {
    return { message, advice: "Look whether the server still runs, then load again." };
  }
  if (isCoppiceError(error, "COPPICE_TASK_TOO_LONG")) return { message, advice: "Shorten the prompt." };
  const hint = isCoppiceError(error) ? error.hint : undefined;
  return { message, advice: hint ?? "Load again; if it stays, make the models anew with `npm run models`." };
}

/**
 * A module whose one function makes a vector: valid where WebAssembly has SIMD.
 * Type () -> v128; body: i32.const 0, i8x16.splat, end.
 */
const vectorModule = Uint8Array.of(
  ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
  ...[1, 5, 1, 0x60, 0, 1, 0x7b],
  ...[3, 2, 1, 0],
  ...[10, 8, 1, 6, 0, 0x41, 0, 0xfd, 0x0f, 0x0b],
);

/** Why this browser cannot run the page at all, or undefined. */
export function browserProblem(): Problem | undefined {
  const advice = "Open the page in a current version of Firefox, Chrome, Edge or Safari.";
  if (typeof WebAssembly === "undefined" || typeof Worker === "undefined") {
    return { message: "This browser runs no WebAssembly, or has it switched off.", advice };
  }
  return WebAssembly.validate(vectorModule)
    ? undefined
    : { message: "WebAssembly has no SIMD instructions in this browser.", advice };
}

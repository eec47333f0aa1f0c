import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { createReferenceBackend } from "./backend.js";

/** The reference backend has no options. */
export type ReferenceOptions = Record<never, never>;

declare module "@coppice/core" {
  interface BackendPlugins {
    reference: ReferenceOptions;
  }
}

/**
 * Runs models in plain TypeScript on the calling thread: no native library, no dependency. Every sum is
 * accumulated in float64 and rounded to float32 once, so it serves as the oracle of the other backends.
 * It reads all weights once when a model is loaded and holds them as float32: 4 bytes per parameter.
 */
export const reference = definePlugin({
  kind: "backend",
  name: "reference",
  contract: 1,
  summary: "Plain TypeScript with float64 sums: slow, exact, runs anywhere.",
  options: v.strictObject({}),
  create: createReferenceBackend,
});

import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { createCpuBackend } from "./backend.js";

export interface CpuOptions {
  /**
   * Threads of one runner. Two runners in two workers with one thread each get more done than one runner with two.
   * @default 1
   */
  readonly threads?: number;
  /**
   * Bytes of merged experts kept between runs, so that a candidate pays only for the merges that are new. The merged
   * experts of the plan that is running are held besides.
   * @default 268435456 (256 MiB)
   */
  readonly mergeCacheBytes?: number;
}

declare module "@coppice/core" {
  interface BackendPlugins {
    cpu: CpuOptions;
  }
}

/** Runs models on the CPU provider of ONNX Runtime, in float32. Holds 4 bytes per parameter. */
export const cpu = definePlugin({
  kind: "backend",
  name: "cpu",
  contract: 1,
  summary: "ONNX Runtime on the CPU, float32.",
  reference: "https://onnxruntime.ai",
  options: v.strictObject({
    threads: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(1024)), 1),
    mergeCacheBytes: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(0)), 2 ** 28),
  }),
  create: createCpuBackend,
});

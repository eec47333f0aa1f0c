import { createModelPool, type ModelPool } from "@coppice/executor-local";
import type { CliContext } from "../context.js";
import { findPlugin } from "../plugins/find-plugin.js";
import type { OpenModel } from "./open-model.js";

/** Options of every command that runs a model. */
export interface PoolOptions {
  readonly backend: string;
  readonly backendSet?: Readonly<Record<string, unknown>>;
  readonly workers?: number;
}

/** Loads a model into workers with the backend that the user named. */
export async function openPool(
  opened: OpenModel,
  options: PoolOptions,
  context: CliContext,
): Promise<ModelPool> {
  const { module, export: name } = findPlugin("backend", options.backend, context.io.cwd);
  return createModelPool({
    model: opened.path,
    backend: { module, options: options.backendSet ?? {}, ...(name !== undefined && { export: name }) },
    signal: context.signal,
    ...(options.workers !== undefined && { workers: options.workers }),
  });
}

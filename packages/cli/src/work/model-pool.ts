import { type BackendSource, createModelPool, type ModelPool } from "@coppice/executor-local";
import type { CliContext } from "../context.js";
import { type FoundPlugin, findPlugin } from "../plugins/find-plugin.js";
import type { OpenModel } from "./open-model.js";

/** Options of every command that runs a model. */
export interface PoolOptions {
  readonly backend: string;
  readonly backendSet?: Readonly<Record<string, unknown>>;
  readonly workers?: number;
}

/** Where workers find the backend that the user named. */
export function backendSource(
  { module, export: name }: FoundPlugin,
  { backendSet = {} }: PoolOptions,
): BackendSource {
  return { module, options: backendSet, ...(name !== undefined && { export: name }) };
}

/** Loads a model into workers with the backend that the user named. */
export async function openPool(
  opened: OpenModel,
  options: PoolOptions,
  context: CliContext,
): Promise<ModelPool> {
  return createModelPool({
    model: opened.path,
    backend: backendSource(findPlugin("backend", options.backend, context.io.cwd), options),
    signal: context.signal,
    ...(options.workers !== undefined && { workers: options.workers }),
  });
}

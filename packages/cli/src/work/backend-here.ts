import type { Backend } from "@coppice/core";
import type { CliContext } from "../context.js";
import { loadPlugin } from "../plugins/find-plugin.js";
import type { PoolOptions } from "./model-pool.js";

/** The backend that the user named, in this process: for work that loads other experts while it goes on. */
export async function backendHere(
  { backend, backendSet = {} }: Omit<PoolOptions, "workers">,
  context: CliContext,
): Promise<Backend> {
  const { plugin } = await loadPlugin("backend", backend, context.io.cwd);
  return plugin.create(backendSet, undefined);
}

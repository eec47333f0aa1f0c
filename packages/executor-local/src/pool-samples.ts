import type { MoeModel } from "@coppice/core";
import { gatherSamples, type WriteOptions, type WrittenSamples } from "@coppice/evaluate";
import { all } from "./on-hosts.js";
import type { PoolTaskOptions } from "./pool-task.js";
import type { WorkerHost } from "./worker-host.js";

/** Which texts to write. */
export interface PoolSamplesOptions extends PoolTaskOptions, Omit<WriteOptions, "emitter"> {}

/** Texts like the samples, each group written by the next worker that is free; they do not depend on how many there are. */
export async function writeOnHosts(
  hosts: readonly WorkerHost[],
  model: MoeModel,
  { tokens, seed, emitter, signal: stop, ...source }: PoolSamplesOptions,
): Promise<WrittenSamples> {
  const task = await (hosts[0] as WorkerHost).call("encodeTask", source, { signal: stop });
  const options = {
    ...(tokens !== undefined && { tokens }),
    ...(seed !== undefined && { seed }),
    ...(emitter && { emitter }),
  };
  return gatherSamples(task, model, options, async (groups, onWritten) => {
    const results: WrittenSamples[] = [];
    const waiting = groups.entries();
    await all(hosts, stop, async (host, _, signal) => {
      for (const [index, group] of waiting) {
        const written = await host.call("writeGroup", group, { signal });
        results[index] = written;
        onWritten(written);
      }
    });
    return results;
  });
}

import type { Runner, RunRequest, RunResult, WorkCounters } from "@coppice/core";

/** What of a runner is needed to run sequences. */
export type RunnerPart = Pick<Runner, "model" | "run">;

/** A runner that counts the work of its runs: what was done, and what of the tokens and layers asked for was not. */
export interface CountingRunner extends RunnerPart {
  work(): WorkCounters;
}

export function countingRunner(runner: RunnerPart): CountingRunner {
  const { model } = runner;
  let tokenLayers = 0;
  let asked = 0;
  return {
    model,
    async run(request: RunRequest): Promise<RunResult> {
      const result = await runner.run(request);
      const { sequences, from = 0, to = model.layers.length } = request;
      const tokens = sequences.reduce((sum, { length }) => sum + length, 0);
      tokenLayers += result.tokenLayers;
      asked += tokens * (to - from);
      return result;
    },
    work: () => ({ tokenLayers, avoidedTokenLayers: Math.max(0, asked - tokenLayers) }),
  };
}

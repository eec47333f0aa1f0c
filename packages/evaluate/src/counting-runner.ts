import type { MoeModel, Plan, Runner, RunRequest, RunResult, WorkCounters } from "@coppice/core";

/** What of a runner is needed to run sequences. */
export type RunnerPart = Pick<Runner, "model" | "run">;

/** A runner that counts the work of its runs: what was done, and what of the tokens and layers asked for was not. */
export interface CountingRunner extends RunnerPart {
  work(): WorkCounters;
}

export function countingRunner(runner: RunnerPart): CountingRunner {
  const { model } = runner;
  let [tokenLayers, asked, expertTokens, askedExperts] = [0, 0, 0, 0];
  return {
    model,
    async run(request: RunRequest): Promise<RunResult> {
      const result = await runner.run(request);
      const { sequences, plan, from = 0, to = model.layers.length } = request;
      const tokens = sequences.reduce((sum, { length }) => sum + length, 0);
      const choices = tokens * choicesPerToken(model, plan, from, to);
      tokenLayers += result.tokenLayers;
      asked += tokens * (to - from);
      expertTokens += result.expertTokens ?? choices;
      askedExperts += choices;
      return result;
    },
    work: () => ({
      tokenLayers,
      avoidedTokenLayers: Math.max(0, asked - tokenLayers),
      expertTokens,
      avoidedExpertTokens: Math.max(0, askedExperts - expertTokens),
    }),
  };
}

/** Experts that every token chooses in layers `from` to `to`, together. */
export function choicesPerToken(model: MoeModel, plan: Plan | undefined, from: number, to: number): number {
  const topK = new Map(plan?.layers.map((layer) => [layer.layer, layer.topK]));
  return model.layers
    .slice(from, to)
    .reduce(
      (sum, { feedForward, index }) =>
        sum + (feedForward.kind === "moe" ? (topK.get(index) ?? feedForward.router.topK) : 0),
      0,
    );
}

import { type CollectedStatistics, collectStatistics } from "@coppice/calibrate";
import type { Executor, Plan, RunEmitter } from "@coppice/core";
import {
  calibrationSequences,
  createEvaluator,
  encodeTask,
  evaluateTask,
  type Generated,
  type GenerateOptions,
  generate,
  type Objective,
  type Task,
  type TaskScore,
} from "@coppice/evaluate";
import type { CliContext } from "../context.js";
import { loadPlugin } from "../plugins/find-plugin.js";
import { loadTokenizer } from "./load-tokenizer.js";
import type { OpenModel } from "./open-model.js";

export interface PoolOptions {
  readonly backend: string;
  readonly backendSet?: Readonly<Record<string, unknown>> | undefined;
  readonly workers?: number | undefined;
}

/** A model that is loaded in the workers of this machine. */
export interface ModelPool extends AsyncDisposable {
  logits(sequences: readonly Int32Array[], options: { plan?: Plan; all: boolean }): Promise<Float32Array[][]>;
  generate(prompt: string | Int32Array, options: GenerateOptions): Promise<Generated>;
  score(
    task: Task,
    options: { metric?: string; plan?: Plan; limit?: number; chat?: boolean; emitter?: RunEmitter },
  ): Promise<TaskScore>;
  statistics(
    task: Task,
    options: { limit?: number; chat?: boolean; promptsOnly?: boolean; emitter?: RunEmitter },
  ): Promise<CollectedStatistics>;
  executor(task: Task, options: { objective?: Objective; chat?: boolean }): Promise<Executor>;
}

export async function openPool(
  opened: OpenModel,
  options: PoolOptions,
  context: CliContext,
  _emitter?: RunEmitter,
): Promise<ModelPool> {
  const { plugin } = await loadPlugin("backend", options.backend, context.io.cwd);
  const backend = await plugin.create(options.backendSet ?? {}, undefined);
  const { model, weights, folder } = opened.checkpoint;
  const runner = await backend.load({ model, weights });
  const { signal } = context;
  const tok = () => loadTokenizer(folder);
  return {
    async logits(sequences, { plan, all }) {
      const positions = sequences.map((s) =>
        all ? Int32Array.from(s, (_, i) => i) : Int32Array.of(s.length - 1),
      );
      const { logits } = await runner.run({ sequences, positions, ...(plan && { plan }), signal });
      let row = 0;
      return positions.map((p) =>
        Array.from(p, () => logits!.slice(row * model.vocabSize, ++row * model.vocabSize)),
      );
    },
    generate: async (prompt, o) => generate(runner, await tok(), prompt as string, { ...o, signal }),
    score: async (task, o) => evaluateTask({ runner, tokenizer: await tok(), task, signal, ...o }),
    statistics: async (task, o) =>
      collectStatistics({
        runner,
        sequences: calibrationSequences(task, { tokenizer: await tok(), model, ...o }),
        name: task.name,
        signal,
        ...(o.emitter && { emitter: o.emitter }),
      }),
    async executor(task, o) {
      const ev = createEvaluator({
        runner,
        task: encodeTask(task, { tokenizer: await tok(), model }),
        ...(o.objective && { objective: o.objective }),
      });
      const dispose = async () => {};
      return {
        preferredBatch: 1,
        evaluate: async (plans) => {
          const r = [];
          for (const p of plans) r.push(await ev.evaluate(p, { signal }));
          return r;
        },
        work: () => ev.work(),
        dispose,
        [Symbol.asyncDispose]: dispose,
      };
    },
    [Symbol.asyncDispose]: () => runner.dispose(),
  };
}

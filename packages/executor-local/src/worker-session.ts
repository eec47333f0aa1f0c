import { collectByLayers, collectParts } from "@coppice/calibrate";
import { openWorkFolder } from "@coppice/calibrate/node";
import { type LoadedCheckpoint, loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import {
  type AttentionPlan,
  type Backend,
  CoppiceError,
  type RunAttention,
  RunEmitter,
  type Runner,
} from "@coppice/core";
import {
  calibrationSequences,
  checkObjective,
  continuePrompts,
  createEvaluator,
  defaultObjective,
  type EncodedTask,
  type Evaluator,
  encodePositions,
  encodeTask,
  generate,
  loadTokenizer,
  microBatches,
  noTokenizer,
  partBatches,
  prepareTask,
  scorePositions,
  scoreSamples,
  shardBatches,
  type Tokenizer,
  writeGroup,
} from "@coppice/evaluate";
import { type AttentionSource, createPlugin, openAttention } from "./plugin-source.js";
import type { CalibrationData, Method, TaskParams, WorkerEvent, WorkerMethods } from "./protocol.js";

interface CallContext {
  readonly signal: AbortSignal;
  onEvent(event: WorkerEvent): void;
}

type Handlers = {
  [M in Method]: (
    params: WorkerMethods[M]["params"],
    context: CallContext,
  ) => Promise<WorkerMethods[M]["result"]> | WorkerMethods[M]["result"];
};

/** The state of a worker: the loaded model and the evaluators made so far. */
export class WorkerSession {
  #opened: { checkpoint: LoadedCheckpoint; runner: Runner } | undefined;
  #tokenizer: Tokenizer | undefined;
  readonly #evaluators = new Map<number, Evaluator>();

  async call(method: Method, params: unknown, context: CallContext): Promise<unknown> {
    return (this.#handlers[method] as (params: unknown, context: CallContext) => unknown)(params, context);
  }

  readonly #handlers: Handlers = {
    open: async ({ model: path, backend: source }, { signal }) => {
      const backend = await createPlugin("backend", source);
      const checkpoint = await loadModel(await openFolder(path), { signal });
      const { model, weights } = checkpoint;
      try {
        this.#opened = { checkpoint, runner: yielding(await backend.load({ model, weights, signal })) };
      } catch (error) {
        await checkpoint.close();
        throw error;
      }
      return { model };
    },

    createScorer: async ({ scorer, objective, prefixCacheBytes, attention, shard, ...source }) => {
      const { runner } = this.#model;
      const task = await this.#encode(source);
      const aim = objective ?? defaultObjective(task.form);
      checkObjective(aim, task.form);
      const evaluator = createEvaluator({
        runner: attention ? limited(runner, attention) : runner,
        task,
        objective: aim,
        // The largest batches of all parts are not all the first worker's: a part may be one batch.
        parts: partBatches(task, runner.pace).map(
          (batches, part) => shardBatches(batches, shard.count)[(shard.index + part) % shard.count] ?? [],
        ),
        ...(prefixCacheBytes !== undefined && { prefixCacheBytes }),
      });
      this.#evaluators.set(scorer, evaluator);
      return { parts: evaluator.parts, busyParts: evaluator.busyParts };
    },

    disposeScorer: ({ scorer }) => {
      this.#evaluators.get(scorer)?.[Symbol.dispose]();
      this.#evaluators.delete(scorer);
      return undefined;
    },

    evaluate: async ({ scorer, plan, part }, { signal }) => {
      const evaluator = this.#evaluators.get(scorer);
      if (!evaluator) throw new CoppiceError("COPPICE_INTERNAL", `the worker has no scorer ${scorer}`);
      const scores = await evaluator.evaluate(plan, { part, signal });
      return { ...scores, work: evaluator.work() };
    },

    scoreTask: async ({ metric: name, plan, attention, shard, ...source }, { signal, onEvent }) => {
      const { checkpoint, runner } = this.#model;
      const tokenizer = await this.#loadTokenizer();
      const { task, metric } = prepareTask(checkpoint.model, {
        ...source,
        tokenizer,
        ...(name !== undefined && { metric: name }),
      });
      const total = task.samples.length;
      const scores = await scoreSamples({
        runner,
        tokenizer,
        task,
        metric,
        plan,
        attention: await optionalAttention(attention),
        batches: shardBatches(microBatches(task, runner.pace), shard.count)[shard.index] ?? [],
        signal,
        onSamples: (count) => onEvent({ type: "done", count, total }),
      });
      return { metric, total, scores };
    },

    scorePositions: async ({ plan, attention, shard, ...source }, { signal, onEvent }) => {
      const { checkpoint, runner } = this.#model;
      const windows = encodePositions(checkpoint.model, await this.#loadTokenizer(), source);
      const total = windows.task.samples.length;
      return scorePositions({
        runner,
        windows,
        plan,
        attention: await optionalAttention(attention),
        batches: shardBatches(microBatches(windows.task), shard.count)[shard.index] ?? [],
        signal,
        onSamples: (count) => onEvent({ type: "done", count, total }),
      });
    },

    calibrationData: async (data) => this.#calibrationData(data, this.#model.checkpoint),

    continuePrompts: async ({ prompts, maxTokens }, { signal }) =>
      continuePrompts(this.#model.runner, await this.#loadTokenizer(), prompts, {
        signal,
        ...(maxTokens !== undefined && { maxTokens }),
      }),

    encodeTask: (source) => this.#encode(source),

    writeGroup: (group, { signal }) => writeGroup(this.#model.runner, group, signal),

    collectStatistics: async ({ collection, shard }, { signal, onEvent }) => {
      const { runner } = this.#model;
      const total = collection.sequences.reduce((sum, { length }) => sum + length, 0);
      const emitter = new RunEmitter();
      let before = 0;
      emitter.on("progress", ({ done }) => {
        onEvent({ type: "done", count: done - before, total });
        before = done;
      });
      for await (const part of collectParts({ ...collection, runner, emitter, signal }, shard)) {
        onEvent({ type: "part", part });
      }
      return undefined;
    },

    collectByLayers: async ({ model: path, backend: source, ...params }, { signal, onEvent }) => {
      const backend = await createPlugin("backend", source);
      await using checkpoint = await loadModel(await openFolder(path), { signal });
      const emitter = new RunEmitter();
      emitter.on("progress", (progress) => onEvent({ type: "progress", progress }));
      const { collection, work, memory, engine } = params;
      return await collectByLayers({
        ...collection,
        sequences: await this.#calibrationData(params.data, checkpoint),
        model: checkpoint.model,
        weights: checkpoint.weights,
        backend: yieldingBackend(backend),
        store: await openWorkFolder(work),
        emitter,
        signal,
        onEstimate: (estimate) => onEvent({ type: "estimate", estimate }),
        ...(memory !== undefined && { memory }),
        ...(engine !== undefined && { engine }),
      });
    },

    generate: async ({ prompt, options: { attention: source, ...options } }, { signal, onEvent }) => {
      const attention = await optionalAttention(source);
      return generate(this.#model.runner, await this.#tokenizerFor(prompt), prompt, {
        ...options,
        signal,
        onToken: (token, text) => onEvent({ type: "token", token, text }),
        ...(attention && { attention }),
      });
    },

    logits: async ({ sequence, all, plan, attention }, { signal }) => {
      const { checkpoint, runner } = this.#model;
      const last = sequence.length - 1;
      const positions = all ? Int32Array.from(sequence, (_, i) => i) : Int32Array.of(last);
      const { logits = new Float32Array(0) } = await runner.run({
        sequences: [sequence],
        positions: [positions],
        ...(plan && { plan }),
        ...(attention && { attention: { plan: attention } }),
        signal,
      });
      const { vocabSize } = checkpoint.model;
      return Array.from(positions, (_, row) => logits.slice(row * vocabSize, (row + 1) * vocabSize));
    },
  };

  get #model() {
    if (!this.#opened) throw new CoppiceError("COPPICE_INTERNAL", "the worker has no model");
    return this.#opened;
  }

  async #loadTokenizer(checkpoint = this.#model.checkpoint): Promise<Tokenizer> {
    this.#tokenizer ??= await loadTokenizer(checkpoint.folder);
    return this.#tokenizer;
  }

  async #calibrationData(
    { task, promptsOnly, limit, chat }: CalibrationData,
    checkpoint: LoadedCheckpoint,
  ): Promise<Int32Array[]> {
    return calibrationSequences(task, {
      tokenizer: await this.#loadTokenizer(checkpoint),
      model: checkpoint.model,
      promptsOnly,
      ...(limit !== undefined && { limit }),
      ...(chat !== undefined && { chat }),
    });
  }

  /** Ids can be continued without a tokenizer. */
  async #tokenizerFor(prompt: string | Int32Array): Promise<Tokenizer> {
    if (typeof prompt !== "string") {
      const files = await this.#model.checkpoint.folder.list();
      if (!files.some(({ name }) => name === "tokenizer.json")) return noTokenizer;
    }
    return this.#loadTokenizer();
  }

  async #encode({ task, limit, chat }: TaskParams): Promise<EncodedTask> {
    return encodeTask(task, {
      tokenizer: await this.#loadTokenizer(),
      model: this.#model.checkpoint.model,
      ...(limit !== undefined && { limit }),
      ...(chat !== undefined && { chat }),
    });
  }
}

async function optionalAttention(source: AttentionSource | undefined) {
  return source && openAttention(source);
}

/** A runner whose texts, each run at once, are under a plan that is resolved at their lengths. */
function limited(runner: Runner, plan: AttentionPlan): Runner {
  return { ...runner, run: (request) => runner.run({ ...request, attention: { plan } }) };
}

function yieldingBackend(backend: Backend): Backend {
  return { ...backend, load: async (request) => yielding(await backend.load(request)) };
}

/** Lets messages in before every run: a backend may block its thread, and an abort must be heard between batches. */
function yielding(runner: Runner): Runner {
  return {
    model: runner.model,
    ...(runner.pace && { pace: runner.pace }),
    ...(runner.draws && { draws: true }),
    run: async (request) => {
      await new Promise((resolve) => setImmediate(resolve));
      return runner.run(request);
    },
    createCache: (sequences, attention?: RunAttention) => runner.createCache(sequences, attention),
    ...(runner.createMemory && { createMemory: runner.createMemory.bind(runner) }),
    dispose: () => runner.dispose(),
    [Symbol.asyncDispose]: () => runner.dispose(),
  };
}

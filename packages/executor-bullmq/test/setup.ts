import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import {
  type Candidate,
  canonicalPlan,
  createPlan,
  type Executor,
  moeLayers,
  type Plan,
  Rng,
} from "@coppice/core";
import { parseTask } from "@coppice/evaluate";
import { type BullmqExecutorOptions, createBullmqExecutor } from "@coppice/executor-bullmq";
import { memoryJournal, runSearch } from "@coppice/search";
import { engine, model, toyPool } from "./fixtures/toy-pool.mjs";

export const task = parseTask(
  Array.from({ length: 12 }, (_, i) => JSON.stringify({ prompt: `${i} =`, answer: ` ${i}` })).join("\n"),
  "toy.jsonl",
);

const program = fileURLToPath(new URL("fixtures/worker.mjs", import.meta.url));

export interface ToyWorker {
  readonly child: ChildProcess;
  readonly ready: Promise<void>;
  /** Exit code, or the signal that ended it, with what it wrote to stderr. */
  readonly gone: Promise<{ code: number | string | null; stderr: string }>;
  kill(signal?: NodeJS.Signals): Promise<void>;
}

export function startWorker(redis: string, options: Record<string, unknown> = {}): ToyWorker {
  const child = spawn(process.execPath, [program, JSON.stringify({ redis, ...options })], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const gone = new Promise<{ code: number | string | null; stderr: string }>((resolve) => {
    child.once("close", (code, signal) => resolve({ code: signal ?? code, stderr }));
  });
  const ready = new Promise<void>((resolve) => {
    child.stdout.once("data", () => resolve());
    void gone.then(() => resolve());
  });
  return {
    child,
    ready,
    gone,
    kill: async (signal = "SIGKILL") => {
      child.kill(signal);
      await gone;
    },
  };
}

export function executor(redis: string, options: Partial<BullmqExecutorOptions> = {}): Promise<Executor> {
  return createBullmqExecutor({ redis, model, engine, task, checkMs: 200, ...options });
}

/** What the same pool gives in this process. */
export function local(): Promise<Executor> {
  return toyPool().scorer({ task, objective: "likelihood" });
}

export function plan(first: readonly number[], rest: readonly number[] = [1, 3, 5]): Plan {
  const layers = moeLayers(model);
  const all = layers.map(({ index }) => ({ layer: index, experts: index === 1 ? first : rest }));
  return canonicalPlan(createPlan(model, all), model);
}

/** Canonical, as a search passes them on: another order of slots may sum in another order. */
export function plans(count: number, seed = 1): Plan[] {
  const rng = Rng.fromSeed(seed);
  return Array.from({ length: count }, () => {
    const all = moeLayers(model).map(({ index }) => ({ layer: index, experts: rng.sample(6, 3) }));
    return canonicalPlan(createPlan(model, all), model);
  });
}

/** A search whose course depends on every result; gives its history and the keys in its journal. */
export async function search(on: Executor, evaluations: number, atEvaluation?: (done: number) => void) {
  const rng = Rng.fromSeed(7);
  let best: { plan: Plan; fitness: number } | undefined;
  let done = 0;
  const journal = memoryJournal();
  const fresh = () => plans(1, rng.integer(2 ** 30))[0] as Plan;
  const result = await runSearch({
    model,
    executor: on,
    evaluations,
    journal,
    strategy: {
      ask: (limit): Candidate[] =>
        Array.from({ length: limit }, () => {
          const other = fresh();
          const layers = best?.plan.layers.map((layer, i) =>
            rng.bernoulli(0.5) ? layer : (other.layers[i] ?? layer),
          );
          return { plan: layers ? createPlan(model, layers) : other, phase: "climb", origin: "mix" };
        }),
      tell: (results) => {
        for (const { candidate, fitness } of results) {
          if (!best || fitness > best.fitness) best = { plan: candidate.plan, fitness };
        }
        done += results.length;
        atEvaluation?.(done);
      },
    },
  });
  const keys = journal.records.map((record) => (record as { key?: string }).key ?? "");
  return { history: result.history, best: result.best.key, scores: [...result.best.scores], keys };
}

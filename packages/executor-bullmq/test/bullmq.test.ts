import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { noWork, type PlanScores, planKey, RunEmitter } from "@coppice/core";
import { createRemotePool } from "@coppice/evaluate";
import { connectBullmq, startBullmqWorker } from "@coppice/executor-bullmq";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { engine, model, toyPool } from "./fixtures/toy-pool.mjs";
import { hasRedis, RedisServer } from "./redis-server.js";
import { executor, local, plan, plans, search, startWorker, type ToyWorker, task } from "./setup.js";

if (!hasRedis) console.warn("redis-server was not found: tests of @coppice/executor-bullmq are skipped");

describe.skipIf(!hasRedis)("with Redis", () => {
  let redis: RedisServer;
  let folder = "";
  const workers: ToyWorker[] = [];
  const worker = async (options: Record<string, unknown> = {}): Promise<ToyWorker> => {
    const started = startWorker(redis.url, options);
    workers.push(started);
    await started.ready;
    return started;
  };

  beforeAll(async () => {
    redis = await RedisServer.start();
    folder = mkdtempSync(join(tmpdir(), "coppice-bullmq-"));
  });
  beforeEach(async () => {
    const client = redis.client();
    await client.flushall();
    client.disconnect();
  });
  afterEach(async () => {
    await Promise.all(workers.splice(0).map((started) => started.kill()));
  });
  afterAll(async () => {
    await redis?.end();
    rmSync(folder, { recursive: true, force: true });
  });

  it("gives the bits that a local executor gives, NaN included, and counts the work", async () => {
    await Promise.all([worker(), worker()]);
    await using remote = await executor(redis.url, { window: 5 });
    const wanted = [...plans(40), plan([0, 4])];
    const results = await remote.evaluate(wanted);
    expect(results).toEqual(await (await local()).evaluate(wanted));
    expect(results.at(-1)?.scores[0]).toBeNaN();
    expect(remote.work()).toEqual({ ...noWork, tokenLayers: 41 * 10 * task.samples.length });
  });

  it("measures metrics and leaves results for those who come later", async () => {
    const log = join(folder, "once.log");
    await worker({ log });
    const first = await executor(redis.url);
    const wanted = plans(5);
    const expected = await first.evaluate(wanted);
    await first.dispose();
    await using second = await executor(redis.url);
    expect(await second.evaluate([...wanted, ...wanted])).toEqual([...expected, ...expected]);
    expect(readFileSync(log, "utf8").trim().split("\n").sort()).toEqual(
      wanted.map((each) => planKey(each, model)).sort(),
    );
    await using pool = createRemotePool({
      model,
      engine,
      transport: await connectBullmq({ redis: redis.url }),
    });
    const [some] = wanted;
    const options = { task, metric: "exact-match", ...(some && { plan: some }) };
    expect(await pool.evaluateTask(options)).toEqual(await toyPool().evaluateTask(options));
    await expect(pool.evaluateTask({ task, metric: "choice-accuracy" })).rejects.toMatchObject({
      code: "COPPICE_TASK_METRIC",
    });
  });

  it("ends with the same search when workers finish in any order and are killed and Redis is flushed and restarted", async () => {
    const expected = await search(await local(), 112);
    let crew: ToyWorker[] = await Promise.all([worker({ jitterMs: 25 }), worker({ jitterMs: 25 })]);
    const trouble: Promise<unknown>[] = [];
    const events: Record<number, () => Promise<unknown>> = {
      24: async () => {
        const [victim] = crew;
        await victim?.kill();
        crew = [await worker({ jitterMs: 25 }), ...crew.slice(1)];
      },
      48: async () => {
        const client = redis.client();
        await client.flushall();
        client.disconnect();
      },
      72: async () => {
        await redis.stop();
        await new Promise((resolve) => setTimeout(resolve, 300));
        await redis.start();
      },
      96: async () => {
        await Promise.all(crew.map((each) => each.kill()));
        await Promise.all([worker({ jitterMs: 25 }), worker()]);
      },
    };
    await using remote = await executor(redis.url);
    const found = await search(remote, 112, (done) => {
      const event = events[done];
      // In the middle of the next batch.
      if (event) trouble.push(new Promise((resolve) => setTimeout(resolve, 15)).then(event));
    });
    await Promise.all(trouble);
    expect(trouble).toHaveLength(4);
    expect(found).toEqual(expected);
    expect(new Set(found.keys).size).toBe(112);
  }, 60_000);

  it("takes results that come twice, late, or from nowhere", async () => {
    const slow = await worker({ delayMs: 1_500, lockMs: 60_000 });
    await using remote = await executor(redis.url);
    const [wanted] = plans(1);
    const stop = new AbortController();
    const first = remote.evaluate([wanted ?? plan([1, 2, 3])], { signal: stop.signal });
    setTimeout(() => stop.abort(), 300);
    await expect(first).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
    // The worker goes on; its late result answers the second call, in which the job is put a second time.
    const again = await remote.evaluate([wanted ?? plan([1, 2, 3])]);
    expect(again).toEqual(await (await local()).evaluate([wanted ?? plan([1, 2, 3])]));
    const client = redis.client();
    const [id] = (await client.keys("coppice:coppice:*")).filter((key) => /:[0-9a-f]{32}$/.test(key));
    const returnvalue = (await client.hget(id as string, "returnvalue")) ?? "{}";
    for (const jobId of [(id as string).split(":")[2] as string, "0".repeat(32)]) {
      await client.xadd(
        "coppice:coppice:events",
        "*",
        "event",
        "completed",
        "jobId",
        jobId,
        "returnvalue",
        returnvalue,
      );
    }
    client.disconnect();
    expect(await remote.evaluate([wanted ?? plan([1, 2, 3])])).toEqual(again);
    await slow.kill();
  });

  it("asks again for results that are not usable, and gives up in the end", async () => {
    await using remote = await executor(redis.url);
    const pending = remote.evaluate(plans(1));
    const failed = expect(pending).rejects.toMatchObject({ code: "COPPICE_EXECUTOR_RESULT" });
    const lies = await startBullmqWorker({
      redis: redis.url,
      worker: "liar",
      server: {
        answer: async (request) => ({ ...(request as object), version: 1, scores: "00", work: {} }) as never,
        dispose: async () => {},
        [Symbol.asyncDispose]: async () => {},
      },
    });
    await failed;
    await lies.close();
  });

  it("tells a plan's fault from a fault of the run", async () => {
    await worker();
    await using remote = await executor(redis.url);
    await expect(remote.evaluate([...plans(3), plan([0, 1])])).rejects.toMatchObject({
      code: "COPPICE_BACKEND_FAILED",
      message: "this plan cannot be run",
    });
    expect(await remote.evaluate(plans(3))).toHaveLength(3);
    await expect(remote.evaluate([plan([0, 2])])).rejects.toMatchObject({ code: "COPPICE_TASK_TOO_LONG" });
  });

  it("gives a plan up that ends every worker", async () => {
    // Three may try; the fourth finds that it was enough.
    await Promise.all([1, 2, 3, 4].map(() => worker({ deadly: true, lockMs: 300 })));
    await using remote = await executor(redis.url);
    await expect(remote.evaluate([plan([0, 3])])).rejects.toMatchObject({
      code: "COPPICE_BACKEND_CRASHED",
      message: expect.stringContaining("3 in all"),
    });
    expect(await remote.evaluate(plans(4))).toHaveLength(4);
  }, 30_000);

  it("has foreign workers refuse by name, and stop", async () => {
    const emitter = new RunEmitter();
    const warnings: string[] = [];
    emitter.on("warn", ({ message }) => warnings.push(message));
    const foreign = await worker({ engine: "toy 2" });
    await using remote = await executor(redis.url, { emitter, answerMs: 3_000 });
    await expect(remote.evaluate(plans(2))).rejects.toMatchObject({
      code: "COPPICE_EXECUTOR_FOREIGN",
      message: expect.stringMatching(/every worker .* refused .*engine "toy 1".*"toy 2"/),
    });
    expect(await foreign.gone).toMatchObject({
      code: 3,
      stderr: expect.stringContaining("COPPICE_EXECUTOR_FOREIGN"),
    });
    expect(warnings).toHaveLength(1);
    // Beside a foreign worker a right one does the work.
    const [again] = await Promise.all([worker({ engine: "toy 3" }), worker(), worker({ numerics: "other" })]);
    expect(await remote.evaluate(plans(20))).toHaveLength(20);
    await again?.kill();
  });

  it("says when no worker answers, and leaves no jobs behind after an abort", async () => {
    await using remote = await executor(redis.url, { answerMs: 400 });
    await expect(remote.evaluate(plans(3))).rejects.toMatchObject({
      code: "COPPICE_EXECUTOR_TIMEOUT",
      message: expect.stringContaining("3 plans wait"),
    });
    const stop = new AbortController();
    const running = remote.evaluate(plans(6), { signal: stop.signal });
    const client = redis.client();
    const waiting = () => client.llen("coppice:coppice:wait");
    await expect.poll(waiting).toBe(6);
    stop.abort();
    await expect(running).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
    await expect.poll(waiting).toBe(0);
    client.disconnect();
  });

  it("puts at most a window of jobs at once", async () => {
    const remote = await executor(redis.url, { window: 4 });
    const running = remote.evaluate(plans(20));
    running.catch(() => {});
    const client = redis.client();
    await expect.poll(() => client.llen("coppice:coppice:wait")).toBe(4);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(await client.llen("coppice:coppice:wait")).toBe(4);
    await remote.dispose();
    await expect(running).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
    await expect(remote.evaluate(plans(1))).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
    // No connection of the executor is left.
    await expect
      .poll(async () => ((await client.client("LIST")) as string).trim().split("\n").length)
      .toBe(1);
    client.disconnect();
  });

  it("hands work back when a worker is told to stop", async () => {
    const first = await worker({ delayMs: 1_500, lockMs: 60_000 });
    await using remote = await executor(redis.url);
    const running = remote.evaluate(plans(2));
    await new Promise((resolve) => setTimeout(resolve, 300));
    await worker();
    await first.kill("SIGTERM");
    // Its lock would have lasted a minute.
    expect(await running).toEqual(await (await local()).evaluate(plans(2)));
  });

  it("says that Redis is gone, without the password", async () => {
    const remote = await executor(redis.url.replace("//", "//:secret@").replace(":secret@", ""), {
      unreachableMs: 700,
    });
    const running = remote.evaluate(plans(2));
    const failed = expect(running).rejects.toMatchObject({ code: "COPPICE_EXECUTOR_UNREACHABLE" });
    await redis.stop();
    await failed;
    await remote.dispose();
    const refused = executor(redis.url.replace("//", "//user:secret@"), { unreachableMs: 300 });
    await expect(refused).rejects.toMatchObject({
      code: "COPPICE_EXECUTOR_UNREACHABLE",
      message: expect.not.stringContaining("secret"),
    });
    await expect(executor("http://127.0.0.1")).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    await expect(executor(redis.url, { queue: "a:b" })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    await redis.start();
  });
});

it("compares results as bits", () => {
  const scores = (value: number): PlanScores => ({ scores: Float64Array.of(value) });
  expect(scores(0.1 + 0.2)).not.toEqual(scores(0.3));
});

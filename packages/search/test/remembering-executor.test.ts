import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Executor, planKey, RunEmitter } from "@coppice/core";
import { runSearch } from "@coppice/search";
import { rememberingExecutor } from "@coppice/search/node";
import { afterAll, describe, expect, test } from "vitest";
import { encodeLine } from "../src/checked-line.js";
import { model, type NoisyExecutor, noisyExecutor, noisyScores, Racer, samples } from "./noisy-races.js";
import { comparable, keepEverywhere } from "./strategies.js";

const work = mkdtempSync(join(tmpdir(), "coppice-scores-"));
afterAll(() => rmSync(work, { recursive: true }));
let folders = 0;
const newFolder = () => join(work, String(folders++));
const identity = { model: model.fingerprint, objective: "likelihood" };

const remember = (executor: NoisyExecutor, folder: string, more: Record<string, unknown> = {}) =>
  rememberingExecutor({ executor, model, folder, identity: { ...identity, ...more }, samples });

async function search(executor: Executor, evaluations = 60, seed = 3) {
  const strategy = new Racer(seed);
  const result = await runSearch({ strategy, model, executor, evaluations, batch: 4 });
  return { told: strategy.told, result: comparable(result) };
}

/** All files of a folder of scores. */
function filesOf(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".json"))
    .map((name) => join(folder, name));
}

describe("scores that any run evaluated before", () => {
  test("cost no work, change neither course nor budget of a run, and are told apart by identity", async () => {
    const folder = newFolder();
    const plain = await search(noisyExecutor({ parts: true }));
    const first = noisyExecutor({ parts: true });
    expect(await search(await remember(first, folder))).toEqual(plain);
    const again = noisyExecutor({ parts: true });
    expect(await search(await remember(again, folder))).toEqual(plain);
    expect(again.done()).toBe(0);
    const longer = noisyExecutor({ parts: true });
    const rest = await search(await remember(longer, folder), 90);
    expect(rest).toEqual(await search(noisyExecutor({ parts: true }), 90));
    expect(longer.done()).toBeGreaterThan(0);
    expect(longer.done()).toBeLessThan(first.done());
    const other = noisyExecutor({ parts: true });
    await search(await remember(other, folder, { objective: "imitation" }));
    expect(other.done()).toBe(first.done());
  });

  test("are all kept of a plan whose parts are evaluated at the same time", async () => {
    const folder = newFolder();
    const ahead = { parts: true, busyParts: 100 };
    await search(await remember(noisyExecutor(ahead), folder));
    const again = noisyExecutor(ahead);
    await search(await remember(again, folder));
    expect(again.done()).toBe(0);
  });

  test("are found part by part: only what a lost race left out is evaluated", async () => {
    const folder = newFolder();
    const plan = keepEverywhere(model, [0, 1, 2]);
    const all = noisyScores(plan);
    const first = await remember(noisyExecutor({ parts: true }), folder);
    await first.evaluate([plan], { part: 0 });
    await first.evaluate([plan], { part: 1 });
    const inner = noisyExecutor({ parts: true });
    const second = await remember(inner, folder);
    const [part] = await second.evaluate([plan], { part: 1 });
    expect([...(part?.scores ?? [])]).toEqual([...all].filter((_, i) => i % 4 === 1));
    expect(inner.done()).toBe(0);
    const [whole] = await second.evaluate([plan]);
    expect(whole?.scores).toEqual(all);
    expect(whole?.correct).toEqual(Uint8Array.from(all, (score) => Number(score > 0.5)));
    expect(inner.done()).toBe(samples / 2);
    // Whoever evaluates whole plans only finds them too, but not halves.
    const plainInner = noisyExecutor({ parts: false });
    const plain = await remember(plainInner, folder);
    expect((await plain.evaluate([plan]))[0]?.scores).toEqual(all);
    expect(plainInner.done()).toBe(0);
    const half = keepEverywhere(model, [3, 4, 5]);
    await second.evaluate([half], { part: 0 });
    expect((await plain.evaluate([half, plan]))[0]?.scores).toEqual(noisyScores(half));
    expect(plainInner.done()).toBe(samples);
  });

  test("are shared by runs at the same time", async () => {
    const folder = newFolder();
    const expected = await search(noisyExecutor({ parts: true }));
    const inner = Array.from({ length: 4 }, () => noisyExecutor({ parts: true }));
    const runs = await Promise.all(inner.map(async (one) => search(await remember(one, folder))));
    for (const run of runs) expect(run).toEqual(expected);
    const again = noisyExecutor({ parts: true });
    expect(await search(await remember(again, folder))).toEqual(expected);
    // Of two that write a plan at the same moment one stays, perhaps that with fewer parts.
    expect(again.done()).toBeLessThan((inner[0]?.done() as number) / 10);
  });

  test.each<readonly [string, (path: string, line: string) => void]>([
    ["cut short", (path) => truncateSync(path, 50)],
    ["changed by a bit", (path, line) => writeFileSync(path, line.replace("1", "2"))],
    ["empty", (path) => writeFileSync(path, "")],
    ["too large", (path) => truncateSync(path, 2 ** 25 + 1)],
    ["no file", (path) => replace(path, mkdirSync)],
    ["a link to something endless", (path) => replace(path, () => symlinkSync("/dev/zero", path))],
    [
      "of another plan",
      (path, line) => writeFileSync(path, signed({ ...recordOf(line), key: "0".repeat(32) })),
    ],
    [
      "of another identity",
      (path, line) => writeFileSync(path, signed({ ...recordOf(line), identity: "x" })),
    ],
    [
      "of other parts",
      (path, line) => writeFileSync(path, signed({ ...recordOf(line), parts: [{ scores: [1] }] })),
    ],
    [
      "of parts without end",
      (path, line) => writeFileSync(path, signed({ ...recordOf(line), parts: Array(1000).fill(null) })),
    ],
    [
      "of scores that are none",
      (path, line) => writeFileSync(path, signed({ ...recordOf(line), parts: [{ scores: ["a"] }] })),
    ],
  ])("count as unknown in a file that is %s", async (_, spoil) => {
    const folder = newFolder();
    const plan = keepEverywhere(model, [0, 1, 2]);
    await (await remember(noisyExecutor({ parts: true }), folder)).evaluate([plan]);
    const [path = ""] = filesOf(folder);
    expect(path).toContain(planKey(plan, model));
    spoil(path, readFileSync(path, "utf8"));
    const inner = noisyExecutor({ parts: true });
    const warnings: string[] = [];
    const emitter = new RunEmitter();
    emitter.on("warn", ({ code }) => warnings.push(code));
    const executor = await rememberingExecutor({
      executor: inner,
      model,
      folder,
      identity,
      samples,
      emitter,
    });
    const other = keepEverywhere(model, [1, 2, 3]);
    const results = await executor.evaluate([plan, other]);
    expect(results.map(({ scores }) => scores)).toEqual([noisyScores(plan), noisyScores(other)]);
    expect(inner.done()).toBe(2 * samples);
    // Where nothing can be written, the run hears of it once and goes on.
    await executor.evaluate([plan]);
    expect(warnings.length).toBeLessThanOrEqual(1);
  });

  test("are evaluated anew where parts of a file do not belong together", async () => {
    const folder = newFolder();
    const plan = keepEverywhere(model, [0, 1, 2]);
    const open = (executor: NoisyExecutor) => rememberingExecutor({ executor, model, folder, identity });
    await (await open(noisyExecutor({ parts: true }))).evaluate([plan], { part: 0 });
    const [path = ""] = filesOf(folder);
    const record = recordOf(readFileSync(path, "utf8"));
    writeFileSync(path, signed({ ...record, parts: [{ scores: [1, 1] }, null, null, null] }));
    const [result] = await (await open(noisyExecutor({ parts: true }))).evaluate([plan]);
    expect(result?.scores).toEqual(noisyScores(plan));
  });

  test("are not taken from an executor that forgets a plan", async () => {
    const forgetful: NoisyExecutor = { ...noisyExecutor({ parts: true }), evaluate: async () => [] };
    const executor = await remember(forgetful, newFolder());
    await expect(executor.evaluate([keepEverywhere(model, [0, 1, 2])])).rejects.toMatchObject({
      code: "COPPICE_INTERNAL",
    });
  });

  test("are not kept where they are no numbers, nor of plans that fail", async () => {
    const folder = newFolder();
    const plan = keepEverywhere(model, [0, 1, 2]);
    const broken: NoisyExecutor = {
      ...noisyExecutor({ parts: true }),
      evaluate: async () => [{ scores: new Float64Array(samples).fill(Number.NaN) }],
    };
    const [result] = await (await remember(broken, folder)).evaluate([plan]);
    expect(result?.scores[0]).toBeNaN();
    const failing = noisyExecutor({ parts: true, fails: () => true });
    await expect((await remember(failing, folder)).evaluate([plan])).rejects.toThrow("stopped");
    expect(filesOf(folder)).toEqual([]);
  });

  test("need a folder that can be made", async () => {
    const path = newFolder();
    writeFileSync(path, "");
    await expect(remember(noisyExecutor({ parts: true }), path)).rejects.toMatchObject({
      code: "COPPICE_IO_WRITE",
    });
  });
});

function recordOf(line: string): Record<string, unknown> {
  return JSON.parse(line).record;
}

function replace(path: string, make: (path: string) => void): void {
  rmSync(path);
  make(path);
}

/** A line whose checksum is right. */
function signed(record: Record<string, unknown>): string {
  return encodeLine({ type: "scores", ...record });
}

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { canonicalPlan, createPlan, moeLayers, type Plan, Rng, RunEmitter } from "@coppice/core";
import { parseTask } from "@coppice/evaluate";
import { type CommandExecutorOptions, createCommandExecutor } from "@coppice/executor-command";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { fillCommand } from "../src/command-line.js";
import { engine, model, toyPool } from "./fixtures/toy-pool.mjs";

const program = fileURLToPath(new URL("fixtures/program.mjs", import.meta.url));
const task = parseTask(
  Array.from({ length: 9 }, (_, i) => JSON.stringify({ prompt: `${i} =`, answer: ` ${i}` })).join("\n"),
  "toy.jsonl",
);

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "coppice-command-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const executor = (behaviour: string, options: Partial<CommandExecutorOptions> = {}) =>
  createCommandExecutor({
    command: [process.execPath, program, behaviour, folder, "{request}", "{result}"],
    folder: join(folder, "files"),
    model,
    engine,
    task,
    pauseMs: 10,
    settleMs: 100,
    graceMs: 200,
    ...options,
  });

function plans(count: number): Plan[] {
  const rng = Rng.fromSeed(1);
  return Array.from({ length: count }, () => {
    const layers = moeLayers(model).map(({ index }) => ({ layer: index, experts: rng.sample(6, 3) }));
    return canonicalPlan(createPlan(model, layers), model);
  });
}

const expected = async (of: readonly Plan[]) =>
  (await toyPool().scorer({ task, objective: "likelihood" })).evaluate(of);
const runs = () => readFileSync(join(folder, "runs"), "utf8").trim().split("\n").map(Number);
const leftOver = () => (existsSync(join(folder, "files")) ? readdirSync(join(folder, "files")) : []);

const alive = (pid: number) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

describe("createCommandExecutor", () => {
  it("gives the bits that a local executor gives, in batches, and remembers them", async () => {
    await using remote = await executor("work", { batch: 3, parallel: 2 });
    const wanted = plans(7);
    expect(await remote.evaluate(wanted)).toEqual(await expected(wanted));
    expect(runs().sort()).toEqual([1, 3, 3]);
    expect(remote.work().tokenLayers).toBe(7 * 10 * task.samples.length);
    await remote.evaluate(wanted.slice(2, 5));
    expect(runs()).toHaveLength(3);
    expect(leftOver()).toEqual([]);
  });

  it("tries again, for what is missing only", async () => {
    const warnings: string[] = [];
    const emitter = new RunEmitter();
    emitter.on("warn", ({ message }) => warnings.push(message));
    await using failing = await executor("fail-once", { emitter });
    const wanted = plans(3);
    expect(await failing.evaluate(wanted)).toEqual(await expected(wanted));
    expect(warnings).toEqual([
      expect.stringMatching(/^attempt 1 of 3 for 3 plans: .*exit code 4.*no node is free/),
    ]);
    await using half = await executor("half");
    expect(await half.evaluate(wanted)).toEqual(await expected(wanted));
    expect(runs()).toEqual([3, 3, 3, 2, 1]);
    await using repeating = await executor("repeat");
    expect(await repeating.evaluate(wanted)).toEqual(await expected(wanted));
  });

  it.each([
    ["fail", "COPPICE_EXECUTOR_FAILED", /exit code 4; it wrote: no node is free \(attempt 2 of 2\)/, 2],
    ["silent", "COPPICE_EXECUTOR_RESULT", /wrote no result/, 2],
    ["garbage", "COPPICE_EXECUTOR_RESULT", /is not JSON/, 2],
    ["foreign", "COPPICE_EXECUTOR_FOREIGN", /engine "toy 1".*"toy 2"/, 1],
  ])("gives up: %s", async (behaviour, code, message, count) => {
    await using remote = await executor(behaviour, { attempts: 2 });
    await expect(remote.evaluate(plans(2))).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    expect(runs()).toHaveLength(count);
    expect(leftOver()).toEqual([]);
  });

  it.each(["abort", "timeout", "dispose"])("ends the whole process group: %s", async (how) => {
    const remote = await executor("hang", how === "timeout" ? { timeoutMs: 1_500, attempts: 1 } : {});
    const stop = new AbortController();
    const running = remote.evaluate(plans(1), { signal: stop.signal });
    const failed = expect(running).rejects.toMatchObject({
      code: {
        abort: "COPPICE_ABORTED",
        timeout: "COPPICE_EXECUTOR_FAILED",
        dispose: "COPPICE_BACKEND_DISPOSED",
      }[how],
    });
    const pids = () => readFileSync(join(folder, "pids"), "utf8").split(" ").map(Number);
    await expect.poll(() => existsSync(join(folder, "pids")) && pids().length, { timeout: 10_000 }).toBe(2);
    const group = pids();
    if (how === "abort") stop.abort();
    if (how === "dispose") await remote.dispose();
    await failed;
    await expect.poll(() => group.filter(alive), { timeout: 5_000 }).toEqual([]);
    await remote.dispose();
    await expect(remote.evaluate(plans(1))).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
  });

  it("refuses commands that are none", async () => {
    await using remote = await executor("", { command: [join(folder, "no-such-program")] });
    await expect(remote.evaluate(plans(1))).rejects.toMatchObject({ code: "COPPICE_EXECUTOR_UNREACHABLE" });
    await expect(executor("", { command: [] })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    await expect(executor("", { command: "ls" as never })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    await expect(executor("", { batch: 0 })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
  });
});

it("fills paths in, also odd ones, or appends them", () => {
  const files = { request: "/a b/$&.json", result: "/r" };
  expect(fillCommand(["ssh", "host", "--in={request}", "{result}"], files)).toEqual([
    "ssh",
    "host",
    "--in=/a b/$&.json",
    "/r",
  ]);
  expect(fillCommand(["run"], files)).toEqual(["run", "/a b/$&.json", "/r"]);
});

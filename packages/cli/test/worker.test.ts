import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { withoutPassword } from "../src/work/work-pool.js";
import { coppice, coppiceJson, start } from "./cli.js";
import { hasRedis, startRedis } from "./redis-server.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const task = writeTask(join(work, "task.jsonl"), 40);
const further = writeTask(join(work, "further.jsonl"), 40, 100);
const bin = fileURLToPath(new URL("../dist/bin.js", import.meta.url));

const args = (out: string, ...more: string[]) => [
  ...["search", model, "--task", task, "--task", further, "--keep", "4", "--limit", "8", "--budget", "24"],
  ...["--objective", "log-likelihood", "--metric", "log-likelihood", "--out", join(work, out), ...more],
];
const outcome = (out: string) => {
  const {
    seconds: _,
    searching: __,
    work: ___,
    ...result
  } = JSON.parse(readFileSync(join(work, out, "result.json"), "utf8"));
  return result;
};
const evaluation = (...more: string[]) =>
  coppice(["eval", model, "--task", task, "--limit", "9", "--metric", "log-likelihood", "--json", ...more]);

describe("--executor command", () => {
  const command = `command=${JSON.stringify([
    ...[process.execPath, bin, "worker", model, "--workers", "1"],
    ...["--request", "{request}", "--result", "{result}"],
  ])}`;

  it("scores as here", async () => {
    const there = [
      "--executor",
      "command",
      "--executor-set",
      command,
      "--executor-set",
      `folder=${join(work, "files")}`,
    ];
    const [mine, other] = await Promise.all([evaluation(), evaluation(...there)]);
    const { seconds: _, ...expected } = mine.json();
    expect(other.json()).toMatchObject(expected);
  });

  it("refuses another model, settings that are none, and half a request", async () => {
    const other = copyModel(join(work, "other"), "qwen3_moe");
    const foreign = await evaluation(
      ...["--executor", "command", "--executor-set", command.replace(model, other)],
    );
    expect(foreign).toMatchObject({ code: 2, stderr: expect.stringContaining("COPPICE_EXECUTOR_FOREIGN") });
    const unknown = await evaluation("--executor", "command", "--executor-set", "comand=x");
    expect(unknown).toMatchObject({ code: 2, stderr: expect.stringContaining("--executor-set") });
    expect(await evaluation("--executor", "ftp://u:secret@host")).toMatchObject({
      code: 2,
      stderr: expect.not.stringContaining("secret"),
    });
    expect(await coppice(["worker", model, "--request", "x"])).toMatchObject({ code: 2 });
    writeFileSync(join(work, "bad.json"), "{}");
    const bad = await coppice([
      "worker",
      model,
      "--request",
      join(work, "bad.json"),
      "--result",
      join(work, "r.json"),
    ]);
    expect(bad).toMatchObject({ code: 2, stderr: expect.stringContaining("is no request file") });
  });
});

it("keeps passwords out of what is shown", () => {
  expect(
    ["redis://u:p@ss@host:1/2", "--executor=rediss://:p@host", "redis://host", "a@b"].map(withoutPassword),
  ).toEqual(["redis://host:1/2", "--executor=rediss://host", "redis://host", "a@b"]);
});

if (!hasRedis) console.warn("redis-server was not found: tests of workers over Redis are skipped");

describe.skipIf(!hasRedis)("--executor redis", () => {
  let redis: Awaited<ReturnType<typeof startRedis>>;
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis?.end());

  it("ends with the same result, though a worker is killed", async () => {
    await coppiceJson(args("local"));
    const [victim, other] = [1, 2].map(() =>
      start(["worker", model, "--redis", redis.url, "--workers", "1"]),
    );
    const search = start(args("redis", "--json", "--executor", redis.url));
    await new Promise<void>((resolve) => {
      victim?.child.stderr?.on("data", (text: string) => /^3 /m.test(text) && resolve());
      void search.done.then(() => resolve());
    });
    victim?.child.kill("SIGKILL");
    expect(await search.done).toMatchObject({ code: 0 });
    other?.child.kill("SIGTERM");
    expect(await other?.done).toMatchObject({ code: 0, stdout: expect.stringContaining("plans answered") });
    expect(outcome("redis")).toEqual(outcome("local"));
  });

  it("says when no one is there", async () => {
    const waiting = await evaluation("--executor", redis.url, "--executor-set", "answerSeconds=0.5");
    expect(waiting).toMatchObject({ code: 5, stderr: expect.stringContaining("COPPICE_EXECUTOR_TIMEOUT") });
    const nowhere = await evaluation(
      ...["--executor", "redis://127.0.0.1:1", "--executor-set", "unreachableSeconds=0.5"],
    );
    expect(nowhere).toMatchObject({
      code: 5,
      stderr: expect.stringContaining("COPPICE_EXECUTOR_UNREACHABLE"),
    });
  });
});

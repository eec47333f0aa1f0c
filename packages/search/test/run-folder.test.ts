import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { openRunFolder } from "@coppice/search/node";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

const identity = { seed: 1 };
let parent: string;
let path: string;
beforeEach(async () => {
  parent = await mkdtemp(join(tmpdir(), "coppice-run-"));
  path = join(parent, "deep", "run");
});
afterEach(() => rm(parent, { recursive: true, force: true }));

/** A process that does nothing for a minute; `kill` ends it. */
async function sleeper(): Promise<{ pid: number; kill: () => Promise<void> }> {
  const child = spawn(process.execPath, ["-e", "setTimeout(() => {}, 60_000)"], { stdio: "ignore" });
  await once(child, "spawn");
  const ended = once(child, "exit");
  return {
    pid: child.pid as number,
    kill: async () => {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

async function lockAs(holder: unknown): Promise<void> {
  await mkdir(path, { recursive: true });
  await writeFile(join(path, "run.lock"), typeof holder === "string" ? holder : JSON.stringify(holder));
}

describe("lock", () => {
  test("one process at a time, and it is given back", async () => {
    const run = await openRunFolder(path, identity);
    await expect(openRunFolder(path, identity)).rejects.toMatchObject({
      code: "COPPICE_RUN_LOCKED",
      details: { pid: process.pid },
    });
    await run.dispose();
    expect(await readdir(path)).toEqual(["journal.jsonl"]);
    await using again = await openRunFolder(path, identity);
    expect(again.resumed).toBe(true);
  });

  test("of a living process is respected, of a dead one is taken over", async () => {
    const other = await sleeper();
    await lockAs({ pid: other.pid, host: hostname() });
    await expect(openRunFolder(path, identity)).rejects.toMatchObject({ code: "COPPICE_RUN_LOCKED" });
    await other.kill();
    await (await openRunFolder(path, identity)).dispose();
    expect(await readdir(path)).toEqual(["journal.jsonl"]);
  });

  test.runIf(process.platform === "linux")(
    "of a dead process whose id was given to another one is taken over",
    async () => {
      const other = await sleeper();
      await lockAs({ pid: other.pid, host: hostname(), started: "1" });
      await (await openRunFolder(path, identity)).dispose();
      await other.kill();
    },
  );

  test("of another machine is respected", async () => {
    await lockAs({ pid: 1, host: `${hostname()}-other` });
    await expect(openRunFolder(path, identity)).rejects.toMatchObject({ code: "COPPICE_RUN_LOCKED" });
  });

  test.each(["", "{", "null", '{"pid":"x"}'])(
    "that nobody can have written (%j) is taken over",
    async (text) => {
      await lockAs(text);
      await (await openRunFolder(path, identity)).dispose();
    },
  );

  test("of a dead process is taken over by exactly one of many", async () => {
    const other = await sleeper();
    await other.kill();
    await lockAs({ pid: other.pid, host: hostname() });
    const opened = await Promise.allSettled(Array.from({ length: 24 }, () => openRunFolder(path, identity)));
    const winners = opened.filter((result) => result.status === "fulfilled");
    expect(winners).toHaveLength(1);
    for (const result of opened) {
      if (result.status === "rejected") expect(result.reason).toMatchObject({ code: "COPPICE_RUN_LOCKED" });
      else await result.value.dispose();
    }
    expect(await readdir(path)).toEqual(["journal.jsonl"]);
  });
});

describe("content", () => {
  test("a folder with other files is refused and left alone", async () => {
    await mkdir(path, { recursive: true });
    await writeFile(join(path, "plan.json"), "mine");
    await expect(openRunFolder(path, identity)).rejects.toMatchObject({ code: "COPPICE_IO_EXISTS" });
    expect(await readdir(path)).toEqual(["plan.json"]);
  });

  test("a path through a file is refused", async () => {
    await writeFile(join(parent, "file"), "");
    await expect(openRunFolder(join(parent, "file", "run"), identity)).rejects.toMatchObject({
      code: "COPPICE_IO_WRITE",
    });
    await expect(openRunFolder(join(parent, "file"), identity)).rejects.toMatchObject({
      code: "COPPICE_IO_WRITE",
    });
  });

  test("fresh refuses a folder that holds a run", async () => {
    await (await openRunFolder(path, identity, { fresh: true })).dispose();
    await expect(openRunFolder(path, identity, { fresh: true })).rejects.toMatchObject({
      code: "COPPICE_IO_EXISTS",
    });
  });

  test("files are replaced whole and leave nothing behind", async () => {
    await using run = await openRunFolder(path, identity);
    await run.writeJson("plan.json", { a: 1 });
    const file = await run.writeJson("plan.json", { a: 2 });
    expect(JSON.parse(await readFile(file, "utf8"))).toEqual({ a: 2 });
    expect((await readdir(path)).sort()).toEqual(["journal.jsonl", "plan.json", "run.lock"]);
  });
});

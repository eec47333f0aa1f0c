import { execFile, execFileSync } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CoppiceError } from "@coppice/core";
import {
  freeBytes,
  isUnfinishedFile,
  readError,
  readFileBounded,
  readTextBounded,
  writeError,
  writeFileAtomic,
} from "@coppice/core/node";
import { afterEach, beforeEach, describe, expect, it, test } from "vitest";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "coppice-core-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const aborted = () => AbortSignal.abort();

describe("writeFileAtomic", () => {
  it("writes and replaces, and leaves nothing else", async () => {
    const path = join(folder, "plan.json");
    await writeFileAtomic(path, "first");
    await writeFileAtomic(path, Uint8Array.of(0, 255), { durable: false });
    expect([...(await readFile(path))]).toEqual([0, 255]);
    expect(await readdir(folder)).toEqual(["plan.json"]);
  });

  it("replaces nothing where that is not wanted", async () => {
    const path = join(folder, "plan.json");
    await writeFileAtomic(path, "first", { overwrite: false });
    await expect(writeFileAtomic(path, "second", { overwrite: false })).rejects.toMatchObject({
      code: "COPPICE_IO_EXISTS",
      hint: expect.stringContaining("another name"),
    });
    expect(await readFile(path, "utf8")).toBe("first");
  });

  it("leaves the old file and nothing behind when it fails or is stopped", async () => {
    const path = join(folder, "plan.json");
    await mkdir(path);
    await expect(writeFileAtomic(path, "x")).rejects.toMatchObject({
      code: "COPPICE_IO_WRITE",
      details: { path, system: expect.stringMatching(/^E/) },
    });
    await expect(writeFileAtomic(join(folder, "none", "a"), "x")).rejects.toMatchObject({
      code: "COPPICE_IO_WRITE",
    });
    const other = join(folder, "other");
    await writeFile(other, "old");
    await expect(writeFileAtomic(other, "new", { signal: aborted() })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
    const control = new AbortController();
    const writing = writeFileAtomic(other, "new".repeat(1e6), { signal: control.signal });
    control.abort();
    await expect(writing).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
    expect(await readFile(other, "utf8")).toBe("old");
    expect((await readdir(folder)).sort()).toEqual(["other", "plan.json"]);
  });

  it("lets readers see whole files alone, and what a killed process leaves is known by its name", async () => {
    const path = join(folder, "big");
    const text = (letter: string) => letter.repeat(300_000);
    await writeFile(path, text("a"));
    const script = `
      import { writeFileAtomic } from ${JSON.stringify(import.meta.resolve("@coppice/core/node"))};
      for (;;) for (const letter of "ab") await writeFileAtomic(${JSON.stringify(path)}, letter.repeat(300_000), { durable: false });
    `;
    const child = execFile(process.execPath, ["--input-type=module", "-e", script]);
    const ended = new Promise((resolve) => child.on("exit", resolve));
    const seen = new Set<string>();
    for (let reads = 0; reads < 50 || seen.size < 2; reads++) seen.add(await readFile(path, "utf8"));
    child.kill("SIGKILL");
    await ended;
    expect([...seen].sort()).toEqual([text("a"), text("b")]);
    const left = (await readdir(folder)).filter((name) => name !== "big");
    expect(left.filter((name) => !isUnfinishedFile(name))).toEqual([]);
    for (const name of ["big", ".big", ".big.tmp", "big.12.0123abcd.tmp", ".big.x.0123abcd.tmp"]) {
      expect(isUnfinishedFile(name)).toBe(false);
    }
    expect(isUnfinishedFile(".big.12.0123abcd.tmp")).toBe(true);
  });
});

describe("readFileBounded", () => {
  it.each([0, 1, 65_535, 65_536, 65_537, 200_000])("reads %i bytes", async (size) => {
    const path = join(folder, "file");
    const bytes = Uint8Array.from({ length: size }, (_, i) => (i * 7) % 251);
    await writeFile(path, bytes);
    for (const limit of [size, size + 1, 2 ** 31]) {
      expect(Buffer.compare(await readFileBounded(path, { limit }), bytes)).toBe(0);
    }
    if (size === 0) return;
    await expect(readFileBounded(path, { limit: size - 1, code: "COPPICE_TASK_LINE" })).rejects.toMatchObject(
      {
        code: "COPPICE_TASK_LINE",
        message: expect.stringContaining(`${size} bytes, at most ${size - 1}`),
      },
    );
  });

  it.skipIf(process.platform === "win32")("bounds pipes, whose size nobody tells", async () => {
    const path = join(folder, "pipe");
    execFileSync("mkfifo", [path]);
    const send = (size: number) =>
      execFile(process.execPath, [
        "-e",
        `require("fs").writeFileSync(${JSON.stringify(path)}, "x".repeat(${size}))`,
      ]);
    send(300_000);
    expect(await readTextBounded(path, { limit: 300_000 })).toBe("x".repeat(300_000));
    send(300_000);
    await expect(readFileBounded(path, { limit: 299_999 })).rejects.toMatchObject({
      code: "COPPICE_FORMAT_LIMIT",
      message: expect.stringContaining("more than 299999 bytes"),
    });
  });

  it("says what cannot be read, and stops", async () => {
    const missing = join(folder, "none");
    await expect(readFileBounded(missing, { limit: 9 })).rejects.toMatchObject({
      code: "COPPICE_IO_READ",
      details: { path: missing, system: "ENOENT" },
    });
    await expect(readFileBounded(folder, { limit: 1e9 })).rejects.toMatchObject({ code: "COPPICE_IO_READ" });
    await symlink("none", join(folder, "link"));
    await expect(readTextBounded(join(folder, "link"), { limit: 9 })).rejects.toMatchObject({
      code: "COPPICE_IO_READ",
    });
    await expect(readFileBounded(missing, { limit: 9, signal: aborted() })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
  });
});

test("errors of the system get a code, others pass", () => {
  const system = (code: string) => Object.assign(new Error(`${code}: simulated`), { code });
  for (const full of ["ENOSPC", "EDQUOT"]) {
    expect(writeError("a", system(full))).toMatchObject({
      code: "COPPICE_IO_NO_SPACE",
      details: { path: "a" },
    });
  }
  expect(writeError("a", system("EACCES"))).toMatchObject({ code: "COPPICE_IO_WRITE" });
  expect(readError("a", system("EACCES"))).toMatchObject({
    code: "COPPICE_IO_READ",
    message: "cannot read a: EACCES: simulated",
  });
  expect(readError("a", system("EISDIR"))).toMatchObject({ hint: expect.stringContaining("is a folder") });
  expect(writeError("a", system("EROFS"))).toMatchObject({ hint: expect.stringContaining("read-only") });
  expect(readError("a", system("EIO"))).toMatchObject({ hint: undefined });
  for (const other of [new CoppiceError("COPPICE_USAGE", "no"), new TypeError("bug"), undefined]) {
    expect(writeError("a", other)).toBe(other);
    expect(readError("a", other)).toBe(other);
  }
});

test("freeBytes knows the room of a folder", async () => {
  expect(await freeBytes(folder)).toBeGreaterThan(0);
});

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { applyPlan, loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { createPlan, isCoppiceError, moeLayers } from "@coppice/core";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type FileSystem, nodeFileSystem } from "../src/node/file-system.js";
import { createFolderTarget } from "../src/node/folder-target.js";
import { expectError, load, tiny, tinyFiles } from "./helpers.js";

let base: string;
beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), "coppice-target-"));
});
afterEach(() => rmSync(base, { recursive: true, force: true }));

async function prepared(files?: Parameters<typeof load>[0]) {
  const checkpoint = await load(files ?? (await tinyFiles()));
  const { model } = checkpoint;
  const plan = createPlan(
    model,
    moeLayers(model).map(({ index }) => ({ layer: index, experts: [1, 2] })),
  );
  return { checkpoint, plan };
}

const systemError = (code: string) => Object.assign(new Error(`${code}: simulated`), { code });

/** Fails the `k`-th of all calls with `code`; counts them. Cleaning up always works. */
function failing(k: number, code: string): { fs: FileSystem; calls: () => number; failed: () => string } {
  let calls = 0;
  let failed = "";
  const guard = <A extends unknown[], R>(name: string, work: (...args: A) => Promise<R>) => {
    return async (...args: A): Promise<R> => {
      if (calls++ === k) {
        failed = name;
        throw systemError(code);
      }
      return work(...args);
    };
  };
  const real = nodeFileSystem;
  const fs: FileSystem = {
    exists: guard("exists", real.exists),
    freeBytes: guard("freeBytes", real.freeBytes),
    makeFolders: guard("makeFolders", real.makeFolders),
    makeFolder: guard("makeFolder", real.makeFolder),
    syncFolder: guard("syncFolder", real.syncFolder),
    rename: guard("rename", real.rename),
    create: guard("create", async (path) => {
      const file = await real.create(path);
      return {
        write: guard("write", file.write),
        sync: guard("sync", file.sync),
        // A close that reports an error has still closed.
        close: async () => {
          await file.close();
          await guard("close", async () => {})();
        },
      };
    }),
    list: real.list,
    removeTree: real.removeTree,
    removeFolder: real.removeFolder,
  };
  return { fs, calls: () => calls, failed: () => failed };
}

describe("folderTarget", () => {
  it("writes a folder that loads, with the folders above it", async () => {
    const { checkpoint, plan } = await prepared();
    const path = join(base, "a", "b", "out");
    await applyPlan(checkpoint, plan, folderTarget(path));
    await using output = await loadModel(await openFolder(path));
    expect(moeLayers(output.model)[0]!.feedForward.experts).toHaveLength(2);
    expect(readdirSync(join(base, "a", "b"))).toEqual(["out"]);
  });

  it("refuses to replace anything, and leaves it unharmed", async () => {
    const { checkpoint, plan } = await prepared();
    mkdirSync(join(base, "empty"));
    mkdirSync(join(base, "full"));
    writeFileSync(join(base, "full", "x"), "x");
    writeFileSync(join(base, "file"), "x");
    for (const name of ["empty", "full", "file"]) {
      await expectError(
        applyPlan(checkpoint, plan, folderTarget(join(base, name))),
        "COPPICE_IO_EXISTS",
        name,
      );
    }
    expect(readdirSync(base).sort()).toEqual(["empty", "file", "full"]);
    expect(readdirSync(join(base, "full"))).toEqual(["x"]);
  });

  it("does not replace a folder that appears while it writes, empty or not", async () => {
    const { checkpoint, plan } = await prepared();
    const path = join(base, "out");
    const late: FileSystem = {
      ...nodeFileSystem,
      rename: (from, to) => {
        mkdirSync(path);
        writeFileSync(join(path, "x"), "x");
        return nodeFileSystem.rename(from, to);
      },
    };
    await expectError(applyPlan(checkpoint, plan, createFolderTarget(path, late)), "COPPICE_IO_EXISTS", path);
    expect(readdirSync(base)).toEqual(["out"]);
    expect(readdirSync(path)).toEqual(["x"]);
    rmSync(path, { recursive: true });
    const early: FileSystem = {
      ...nodeFileSystem,
      syncFolder: async () => {
        mkdirSync(path);
      },
    };
    await expectError(
      applyPlan(checkpoint, plan, createFolderTarget(path, early)),
      "COPPICE_IO_EXISTS",
      path,
    );
    expect(readdirSync(base)).toEqual(["out"]);
    expect(readdirSync(path)).toEqual([]);
  });

  it("says before it writes that the disk is too small", async () => {
    const { checkpoint, plan } = await prepared();
    const fs = { ...nodeFileSystem, freeBytes: async () => 1234 };
    const target = createFolderTarget(join(base, "new", "out"), fs);
    await expectError(
      applyPlan(checkpoint, plan, target),
      "COPPICE_IO_NO_SPACE",
      /needs \d{4,} bytes, 1234 bytes/,
    );
    expect(readdirSync(base)).toEqual([]);
  });

  for (const code of ["ENOSPC", "EIO"]) {
    it(`leaves nothing behind when any call fails with ${code}`, async () => {
      const { checkpoint, plan } = await prepared();
      const count = failing(Number.POSITIVE_INFINITY, code);
      await applyPlan(checkpoint, plan, createFolderTarget(join(base, "probe"), count.fs), {
        maxShardBytes: 600,
      });
      rmSync(join(base, "probe"), { recursive: true });
      const seen = new Set<string>();
      for (let k = 0; k < count.calls(); k++) {
        const { fs, failed } = failing(k, code);
        const path = join(base, "new", "out");
        try {
          await applyPlan(checkpoint, plan, createFolderTarget(path, fs), { maxShardBytes: 600 });
          throw new Error(`call ${k} did not matter`);
        } catch (error) {
          const expected = code === "ENOSPC" ? "COPPICE_IO_NO_SPACE" : "COPPICE_IO_WRITE";
          if (!isCoppiceError(error, expected)) throw error;
          expect(error.message).toContain(path);
        }
        seen.add(failed());
        // The last call makes the finished folder durable: it is complete then.
        if (k === count.calls() - 1) {
          expect(failed()).toBe("syncFolder");
          expect(readdirSync(join(base, "new"))).toEqual(["out"]);
        } else expect([k, failed(), readdirSync(base)]).toEqual([k, failed(), []]);
      }
      expect([...seen].sort()).toEqual(
        [
          "close",
          "create",
          "exists",
          "freeBytes",
          "makeFolder",
          "makeFolders",
          "rename",
          "sync",
          "syncFolder",
          "write",
        ].sort(),
      );
    });
  }

  it("makes folders inside of the folder, and no others", async () => {
    const out = join(base, "out");
    const transaction = await createFolderTarget(out, nodeFileSystem).begin(6);
    for (const name of ["onnx/a", "onnx/b"]) {
      const sink = await transaction.create(name, 3);
      await sink.write(0, new Uint8Array(3));
      await sink.close();
    }
    for (const name of ["../a", "onnx/../../a", "/a", "onnx//a", "onnx\\a"]) {
      await expect(transaction.create(name, 1)).rejects.toMatchObject({ code: "COPPICE_FORMAT_PATH" });
    }
    await transaction.commit();
    expect(readdirSync(join(out, "onnx")).sort()).toEqual(["a", "b"]);
    expect(readdirSync(base)).toEqual(["out"]);
  });

  it("continues after short writes", async () => {
    const { checkpoint, plan } = await prepared();
    const fs: FileSystem = {
      ...nodeFileSystem,
      create: async (path) => {
        const file = await nodeFileSystem.create(path);
        return { ...file, write: (bytes, position) => file.write(bytes.subarray(0, 100), position) };
      },
    };
    await applyPlan(checkpoint, plan, createFolderTarget(join(base, "short"), fs));
    await applyPlan(checkpoint, plan, folderTarget(join(base, "plain")));
    await using short = await loadModel(await openFolder(join(base, "short")));
    await using plain = await loadModel(await openFolder(join(base, "plain")));
    expect(short.model.fingerprint).toBe(plain.model.fingerprint);
    expect(short.shards).toEqual(plain.shards);
  });

  it("is absent after the process is killed while it writes", async () => {
    await writeSyntheticCheckpoint(join(base, "model"), { ...tiny, vocabSize: 2000, maxShardBytes: 5000 });
    const script = `
      import { applyPlan, loadModel } from "@coppice/checkpoint";
      import { folderTarget, openFolder } from "@coppice/checkpoint/node";
      import { createPlan, RunEmitter } from "@coppice/core";
      const [folder, out, at] = process.argv.slice(1);
      const checkpoint = await loadModel(await openFolder(folder));
      const emitter = new RunEmitter();
      let seen = 0;
      emitter.on("progress", () => ++seen === Number(at) && process.kill(process.pid, "SIGKILL"));
      await applyPlan(checkpoint, createPlan(checkpoint.model), folderTarget(out), { emitter, maxShardBytes: 5000 });
    `;
    let before: string[] = [];
    for (const at of ["1", "5"]) {
      const out = join(base, "out");
      const args = ["--input-type=module", "-e", script, join(base, "model"), out, at];
      const run = spawnSync(process.execPath, args, { cwd: new URL(".", import.meta.url).pathname });
      expect([run.signal, String(run.stderr)]).toEqual(["SIGKILL", ""]);
      expect(existsSync(out)).toBe(false);
      const left = readdirSync(base).filter((name) => name.startsWith(".out.partial-"));
      expect(left).toHaveLength(1);
      // What the first process left is gone once the second has begun.
      expect(before).not.toEqual(left);
      before = left;
    }
    const [space] = /(?<=partial-)[0-9a-f]{8}-/.exec(before[0] as string) as RegExpExecArray;
    // Of another computer, and of a process that lives.
    const others = [".out.partial-00000000-1-00000000", `.out.partial-${space}${process.pid}-00000000`];
    for (const name of others) mkdirSync(join(base, name));
    await using checkpoint = await loadModel(await openFolder(join(base, "model")));
    await applyPlan(checkpoint, createPlan(checkpoint.model), folderTarget(join(base, "out")));
    expect(readdirSync(base).sort()).toEqual([...others, "model", "out"].sort());
  });
});

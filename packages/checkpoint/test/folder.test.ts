import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative, sep } from "node:path";
import { loadModel } from "@coppice/checkpoint";
import { openFolder, resolveInside } from "@coppice/checkpoint/node";
import { isCoppiceError } from "@coppice/core";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { expectError, text, tinyFiles } from "./helpers.js";

let base: string;
beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), "coppice-folder-"));
});
afterEach(() => rmSync(base, { recursive: true, force: true }));

const readText = async (folder: Awaited<ReturnType<typeof openFolder>>, name: string) => {
  const source = await folder.open(name);
  const bytes = new Uint8Array(source.size);
  await source.read(0, bytes);
  await source.close();
  return text(bytes);
};

describe("openFolder", () => {
  it("lists plain files and reads ranges", async () => {
    mkdirSync(join(base, "sub"));
    writeFileSync(join(base, "a.txt"), "abcdef");
    const folder = await openFolder(base);
    expect(await folder.list()).toEqual([{ name: "a.txt", size: 6 }]);
    const source = await folder.open("a.txt");
    const part = new Uint8Array(3);
    await source.read(2, part);
    expect(text(part)).toBe("cde");
    await expectError(source.read(4, part), "COPPICE_FORMAT_TRUNCATED", "a.txt", "6 bytes", "7");
    await expectError(source.read(0, part, { signal: AbortSignal.abort() }), "COPPICE_ABORTED");
    await source.close();
  });

  it("says what is wrong with a path", async () => {
    await expectError(openFolder(join(base, "none")), "COPPICE_FORMAT_MISSING_FILE", "none");
    writeFileSync(join(base, "file"), "x");
    await expectError(openFolder(join(base, "file")), "COPPICE_FORMAT_MISSING_FILE", "is a file");
    const folder = await openFolder(base);
    await expectError(folder.open("none"), "COPPICE_FORMAT_MISSING_FILE", "none", base);
    await expectError(folder.open("../x"), "COPPICE_FORMAT_PATH");
    mkdirSync(join(base, "sub"));
    await expectError(folder.open("sub"), "COPPICE_FORMAT_MISSING_FILE", "no plain file");
  });

  it("loads a snapshot of the Hugging Face cache, whose files are links to blobs", async () => {
    const snapshot = join(base, "models--a--b", "snapshots", "0123");
    mkdirSync(snapshot, { recursive: true });
    mkdirSync(join(base, "models--a--b", "blobs"));
    for (const [name, bytes] of await tinyFiles()) {
      writeFileSync(join(base, "models--a--b", "blobs", `hash-${name}`), bytes);
      symlinkSync(join("..", "..", "blobs", `hash-${name}`), join(snapshot, name));
    }
    // The folder itself may be reached through a link.
    symlinkSync(snapshot, join(base, "link"));
    await using checkpoint = await loadModel(await openFolder(join(base, "link")));
    expect(checkpoint.model.family).toBe("mixtral");
  });

  it("refuses links that leave the folder and ignores those that lead nowhere", async () => {
    const root = join(base, "root");
    mkdirSync(join(root, "sub"), { recursive: true });
    mkdirSync(join(base, "blobs"));
    writeFileSync(join(base, "secret"), "secret");
    writeFileSync(join(base, "blobs", "x"), "x");
    writeFileSync(join(root, "sub", "inside"), "inside");
    symlinkSync("../secret", join(root, "tokenizer.json"));
    symlinkSync("../blobs/x", join(root, "blob"));
    symlinkSync(join("sub", "inside"), join(root, "good"));
    symlinkSync("nowhere", join(root, "broken"));
    const folder = await openFolder(root);
    await expectError(folder.open("tokenizer.json"), "COPPICE_FORMAT_PATH", "tokenizer.json", "secret");
    await expectError(folder.open("blob"), "COPPICE_FORMAT_PATH");
    expect(await readText(folder, "good")).toBe("inside");
    expect((await folder.list()).map(({ name }) => name)).not.toContain("broken");
    await expectError(folder.open("broken"), "COPPICE_FORMAT_MISSING_FILE", "broken");
  });
});

describe("resolveInside", () => {
  it("takes names inside, whether they exist or not", async () => {
    const real = await resolveInside(base, "a/b/c.bin");
    expect(relative(base, real).split(sep)).toEqual(["a", "b", "c.bin"]);
    writeFileSync(join(base, "..x"), "");
    expect(await resolveInside(base, "..x")).toBe(join(base, "..x"));
  });

  it("refuses everything else", async () => {
    symlinkSync(tmpdir(), join(base, "out"));
    symlinkSync("nowhere", join(base, "broken"));
    writeFileSync(join(base, "plain"), "");
    for (const name of [
      "",
      ".",
      "..",
      "../x",
      "a/../x",
      "a//b",
      "a/",
      "/etc/passwd",
      "//host/share",
      "C:\\x",
      "c:x",
      "\\\\host\\x",
      "a\\..\\b",
      "x\0",
      "out",
      "out/x",
      "broken",
      "plain/x",
    ]) {
      await expectError(resolveInside(base, name), "COPPICE_FORMAT_PATH");
    }
  });

  it("never gives a path outside of the folder", async () => {
    symlinkSync("..", join(base, "up"));
    symlinkSync("/", join(base, "root"));
    mkdirSync(join(base, "sub"));
    symlinkSync("../..", join(base, "sub", "up"));
    const part = fc.oneof(
      fc.constantFrom("..", ".", "", "up", "root", "sub", "x", "C:", "\\", "\0", "%2e%2e", "．．", "a b"),
      fc.string({ maxLength: 6 }),
    );
    await fc.assert(
      fc.asyncProperty(
        fc.array(part, { maxLength: 6 }),
        fc.constantFrom("/", "\\", "//"),
        async (parts, by) => {
          try {
            const real = await resolveInside(base, parts.join(by));
            const way = relative(base, real);
            expect(way === ".." || way.startsWith(`..${sep}`) || way === "").toBe(false);
          } catch (error) {
            if (!isCoppiceError(error, "COPPICE_FORMAT_PATH")) throw error;
          }
        },
      ),
      { numRuns: 3000 },
    );
  });
});

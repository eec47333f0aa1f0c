import { cpSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { editDistance, nearNames } from "../src/plugins/near-names.js";
import { coppice, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const task = writeTask(join(work, "task.jsonl"), 12);
const core = dirname(fileURLToPath(import.meta.resolve("@coppice/core/package.json")));

interface Fake {
  readonly name?: string;
  readonly kind?: string;
  readonly contract?: number;
  readonly code?: string;
}

/** A package with one criterion, installed below `project`. */
function install(project: string, packageName: string, fake: Fake = {}): void {
  const { name = "constant", kind = "criterion", contract = 1 } = fake;
  const folder = join(project, "node_modules", packageName);
  mkdirSync(join(folder, "node_modules", "@coppice"), { recursive: true });
  symlinkSync(core, join(folder, "node_modules", "@coppice", "core"), "junction");
  writeFileSync(
    join(folder, "package.json"),
    JSON.stringify({
      name: packageName,
      version: "1.2.3",
      type: "module",
      exports: { ".": { types: "./index.d.ts", import: "./index.js" } },
      coppice: { plugins: [{ kind, name, contract, summary: "All experts are equal." }] },
    }),
  );
  const code = `
import { definePlugin, moeLayers } from "@coppice/core";
export const other = 1;
export const constant = definePlugin({
  kind: "criterion", name: ${JSON.stringify(name)}, contract: ${contract}, summary: "",
  options: { "~standard": { version: 1, vendor: "test", validate: (value) => ({ value }) } },
  create: (options) => ({
    needs: { statistics: false, weights: false },
    score: async ({ model }) => moeLayers(model).map(({ feedForward }) => feedForward.experts.map((_, i) => options.value ?? -i)),
  }),
});`;
  writeFileSync(join(folder, "index.js"), fake.code ?? code);
}

const project = (name: string) => {
  const folder = join(work, name);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "package.json"), JSON.stringify({ name: `the-${name}`, private: true }));
  return folder;
};

describe("plugins of the folder that the user works in", () => {
  it("are listed without being imported", async () => {
    const cwd = project("listed");
    install(cwd, "coppice-plugin-constant", { code: "throw new Error('imported')" });
    install(cwd, "@someone/coppice-plugin-scoped", { name: "scoped", contract: 99 });
    const { plugins } = await coppiceJson(["plugins"], { cwd });
    expect(plugins).toContainEqual({
      kind: "criterion",
      name: "constant",
      package: "coppice-plugin-constant",
      version: "1.2.3",
      contract: 1,
      summary: "All experts are equal.",
      builtIn: false,
      usable: true,
    });
    expect(plugins).toContainEqual(expect.objectContaining({ name: "scoped", usable: false }));
    expect(plugins).toContainEqual(expect.objectContaining({ kind: "search", name: "eep", builtIn: true }));
    const doctor = await coppiceJson(["doctor"], { cwd });
    expect(doctor["plugins"]).toContainEqual(
      expect.objectContaining({ name: "constant", problem: expect.stringMatching(/imported/) }),
    );
    expect(doctor["plugins"]).toContainEqual(
      expect.objectContaining({ name: "scoped", problem: expect.stringMatching(/contract 99/) }),
    );
  });

  it.each([
    ["coppice-plugin-constant", "constant"],
    ["coppice-plugin-criterion-constant", "constant"],
    ["@someone/coppice-plugin-constant", "constant"],
    ["@someone/coppice-plugin-constant", "@someone/coppice-plugin-constant"],
  ])("%s is found as %s", async (packageName, name) => {
    const cwd = project(`found-${packageName.replace("/", "-")}-${name.length}`);
    install(cwd, packageName);
    const below = join(cwd, "deep", "below");
    mkdirSync(below, { recursive: true });
    const { scores } = await coppiceJson(["score", model, "--criterion", name], { cwd: below });
    expect((scores as number[][])[0]).toEqual([0, -1, -2, -3, -4, -5, -6, -7]);
    const set = await coppiceJson(["score", model, "--criterion", name, "--set", "value=3"], { cwd });
    expect((set["scores"] as number[][])[2]).toEqual(Array(8).fill(3));
  });

  it("includes the package that the user is writing", async () => {
    const parent = project("writing");
    install(parent, "coppice-plugin-constant");
    const cwd = join(work, "mine");
    cpSync(join(parent, "node_modules", "coppice-plugin-constant"), cwd, { recursive: true });
    await coppiceJson(["score", model, "--criterion", "constant"], { cwd });
  });

  it("a plugin that came with a model is not looked at", async () => {
    const cwd = project("elsewhere");
    install(model, "coppice-plugin-constant");
    const finished = await coppice(["score", model, "--criterion", "constant"], { cwd });
    expect(finished.stderr).toMatch(/COPPICE_PLUGIN_NOT_FOUND/);
  });

  it("that are missing are named with what to install and what is near", async () => {
    const finished = await coppice(["score", model, "--criterion", "frequenzy"], { cwd: project("missing") });
    expect(finished.code).toBe(3);
    expect(finished.stderr).toMatch(/COPPICE_PLUGIN_NOT_FOUND: no criterion plugin is named "frequenzy"/);
    expect(finished.stderr).toMatch(/did you mean frequency\?.*npm install coppice-plugin-frequenzy/);
    for (const args of [
      ["search", model, "--strategy", "x", "--keep", "4", "--task", task, "--out", join(work, "r")],
      ["logits", model, "--ids", "1", "--backend", "x"],
    ]) {
      expect((await coppice(args)).code).toBe(3);
    }
  });

  it("that are broken say how", async () => {
    const cwd = project("broken");
    install(cwd, "coppice-plugin-a", { name: "a", code: "export const a = 1;" });
    install(cwd, "coppice-plugin-b", { name: "b", contract: 2 });
    install(cwd, "coppice-plugin-c", { name: "c", code: "import 'nothing-there';" });
    const of = (name: string) => coppice(["score", model, "--criterion", name], { cwd });
    expect(await of("a")).toMatchObject({ code: 3, stderr: expect.stringMatching(/COPPICE_PLUGIN_INVALID/) });
    expect(await of("b")).toMatchObject({
      code: 3,
      stderr: expect.stringMatching(/COPPICE_PLUGIN_CONTRACT/),
    });
    expect(await of("c")).toMatchObject({
      code: 3,
      stderr: expect.stringMatching(/COPPICE_PLUGIN_INVALID.*nothing-there/),
    });
  });
});

describe("near names", () => {
  it("measures edits", () => {
    expect(editDistance("kitten", "sitting")).toBe(3);
    expect(editDistance("", "abc")).toBe(3);
    expect(editDistance("same", "same")).toBe(0);
  });

  it("gives the nearest first and nothing far away", () => {
    expect(nearNames("eap", ["reap", "eep", "frequency"])).toEqual(["eep", "reap"]);
    expect(nearNames("reep", ["reap", "one-shot", "eep"])).toEqual(["eep", "reap"]);
    expect(nearNames("zzzzzzzz", ["reap", "eep"])).toEqual([]);
  });
});

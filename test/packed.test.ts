import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

/**
 * Everything here is installed with npm from packed tarballs into folders outside the repository, so that nothing of
 * the workspace can help: a missing file, dependency or export shows as it would to a user.
 */
const root = fileURLToPath(new URL("..", import.meta.url));
const fixture = join(root, "packages", "plugin-kit", "fixtures", "mixtral");
const minutes = 60_000;

let work = "";
/** Package name -> tarball. */
const tarballs = new Map<string, string>();

beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), "coppice-packed-"));
  run(process.execPath, [join(root, "tools", "pack.mjs"), join(work, "tarballs")], root);
  for (const folder of readdirSync(join(root, "packages"))) {
    const { name, version } = manifest(join(root, "packages", folder));
    const file = `${name.replace("@", "").replace("/", "-")}-${version}.tgz`;
    const path = join(work, "tarballs", file);
    if (existsSync(path)) tarballs.set(name, path);
  }
}, 5 * minutes);

afterAll(() => rmSync(work, { recursive: true, force: true }));

interface Manifest {
  name: string;
  version: string;
  dependencies?: Record<string, string>;
  devDependencies?: Record<string, string>;
  scripts?: Record<string, string>;
}

const manifest = (folder: string): Manifest => JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
/** What the catalog of the workspace says instead of "catalog:", as publishing writes it. */
const catalog = new Map(
  (/^catalog:\n((?: .*\n)*)/m.exec(readFileSync(join(root, "pnpm-workspace.yaml"), "utf8"))?.[1] ?? "")
    .split("\n")
    .flatMap((line) => {
      const [, name, version] = /^ +"?([^":\s]+)"?: "?([^"#\s]+)"?/.exec(line) ?? [];
      return name && version ? [[name, version] as const] : [];
    }),
);
const isOurs = (name: string) => name === "coppice" || name.startsWith("@coppice/");

function run(program: string, args: readonly string[], cwd: string): string {
  const windows = process.platform === "win32";
  const env = { ...process.env, ONNXRUNTIME_NODE_INSTALL: "skip", NO_COLOR: "1" };
  const result = spawnSync(program, args, {
    cwd,
    env,
    encoding: "utf8",
    shell: windows && program === "npm",
  });
  if (result.status !== 0) {
    throw new Error(
      `${program} ${args.join(" ")} ended with ${result.status}\n${result.stdout}\n${result.stderr}`,
    );
  }
  return result.stdout;
}

/** Installs `wanted` of our packages into a new folder; where they need one another they get the tarballs. */
function install(folder: string, base: Partial<Manifest>, wanted: readonly string[]): string {
  const file = (name: string) => {
    const path = tarballs.get(name);
    if (!path) throw new Error(`${name} was not packed`);
    return `file:${path}`;
  };
  const foreign = Object.entries(base.dependencies ?? {})
    .filter(([name]) => !isOurs(name))
    .map(([name, version]) => [name, version === "catalog:" ? (catalog.get(name) ?? version) : version]);
  const { devDependencies: _, ...rest } = base;
  const dependencies = Object.fromEntries([...foreign, ...wanted.map((name) => [name, file(name)])]);
  const overrides = Object.fromEntries([...tarballs.keys()].map((name) => [name, file(name)]));
  writeFileSync(
    join(folder, "package.json"),
    JSON.stringify({ private: true, type: "module", ...rest, dependencies, overrides }),
  );
  run("npm", ["install", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"], folder);
  return folder;
}

const empty = () => mkdtempSync(join(work, "project-"));

/** Names of all packages below node_modules, nested ones included. */
function tree(folder: string): string[] {
  const modules = join(folder, "node_modules");
  if (!existsSync(modules)) return [];
  const names = readdirSync(modules).flatMap((name) =>
    name.startsWith("@") ? readdirSync(join(modules, name)).map((inner) => `${name}/${inner}`) : [name],
  );
  const found = names.filter((name) => !name.startsWith("."));
  return [...new Set([...found, ...found.flatMap((name) => tree(join(modules, name)))])].sort();
}

describe("core and checkpoint alone", () => {
  it(
    "inspect and prune without any runtime",
    () => {
      const folder = install(empty(), {}, ["@coppice/core", "@coppice/checkpoint"]);
      expect(tree(folder)).toEqual([
        "@coppice/checkpoint",
        "@coppice/core",
        "@noble/hashes",
        "@standard-schema/spec",
        "eventemitter3",
        "pure-rand",
      ]);
      writeFileSync(join(folder, "prune.js"), pruneScript);
      const report = JSON.parse(run(process.execPath, ["prune.js", fixture, join(folder, "out")], folder));
      expect(report).toMatchObject({ family: "mixtral", before: { experts: 8 }, after: { experts: 4 } });
      expect(report.after.bytes).toBe(report.predicted);
      expect(report.after.bytes).toBeLessThan(report.before.bytes);
    },
    3 * minutes,
  );
});

const pruneScript = `
import { modelSize, moeLayers, planFromScores } from "@coppice/core";
import { applyPlan, loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder } from "@coppice/checkpoint/node";
const [source, target] = process.argv.slice(2);
const describe = ({ model }) => ({
  experts: moeLayers(model)[0].feedForward.experts.length,
  ...modelSize(model),
});
const loaded = await loadModel(await openFolder(source));
const { model } = loaded;
const scores = moeLayers(model).map(({ feedForward }) => feedForward.experts.map((_, expert) => expert % 3));
const plan = planFromScores(model, scores, 4);
await applyPlan(loaded, plan, folderTarget(target));
const small = await loadModel(await openFolder(target));
console.log(JSON.stringify({
  family: small.model.family,
  before: describe(loaded),
  after: describe(small),
  predicted: modelSize(model, plan).bytes,
}));
`;

const examples = existsSync(join(root, "examples")) ? readdirSync(join(root, "examples")) : [];

/** Example -> the folder where it was installed. */
const installed = new Map<string, string>();

describe("examples", () => {
  it.each(examples)(
    "%s runs from tarballs",
    (name) => {
      const source = join(root, "examples", name);
      const folder = join(empty(), basename(source));
      cpSync(source, folder, {
        recursive: true,
        filter: (path) => !/[\\/](node_modules|dist|\.turbo)$/.test(path),
      });
      const base = manifest(source);
      const dependencies = { ...base.dependencies, ...base.devDependencies };
      install(folder, { ...base, dependencies }, Object.keys(dependencies).filter(isOurs));
      expect(base.scripts).toHaveProperty("start");
      // A page is served until it is stopped; what is served is made before.
      const scripts = base.scripts?.["preview"] ? ["models", "bundle"] : ["start"];
      for (const script of scripts) run("npm", ["run", "--silent", script], folder);
      installed.set(name, folder);
    },
    5 * minutes,
  );
});

describe("the command", () => {
  let folder = "";
  const coppice = (...args: string[]) =>
    run(process.execPath, [join(folder, "node_modules", "coppice", "dist", "bin.js"), ...args], folder);

  beforeAll(() => {
    folder = install(empty(), {}, ["coppice"]);
  }, 5 * minutes);

  it("brings what it needs of ours and no test library", () => {
    const needed = new Set<string>();
    const add = (name: string) => {
      if (needed.has(name)) return;
      needed.add(name);
      const source = join(root, "packages", name === "coppice" ? "cli" : name.replace("@coppice/", ""));
      Object.keys(manifest(source).dependencies ?? {})
        .filter(isOurs)
        .forEach(add);
    };
    add("coppice");
    const installed = tree(folder);
    expect(installed.filter(isOurs)).toEqual([...needed].sort());
    expect(
      installed.filter((name) => /vitest|typescript|esbuild|tsup|fast-check|plugin-kit/.test(name)),
    ).toEqual([]);
  });

  it("inspects, prunes, applies and lists plugins", () => {
    const inspected = JSON.parse(coppice("inspect", fixture, "--json", "--keep", "4"));
    expect(inspected).toMatchObject({ family: "mixtral", experts: 8 });
    const out = join(folder, "pruned");
    const pruned = JSON.parse(
      coppice("prune", fixture, "--keep", "4", "--criterion", "random", "--out", out, "--json"),
    );
    expect(pruned.bytesAfter).toBe(inspected.shrink[0].bytes);
    expect(JSON.parse(coppice("inspect", out, "--json"))).toMatchObject({
      experts: 4,
      bytes: pruned.bytesAfter,
    });
    expect(coppice("plugins")).toMatch(/search +eep/);
  });

  it("finds the example of a plugin by name where it is installed", () => {
    const project = empty();
    const plugin = installed.get("custom-search") ?? "";
    writeFileSync(join(project, "package.json"), JSON.stringify({ private: true }));
    mkdirSync(join(project, "node_modules"));
    symlinkSync(plugin, join(project, "node_modules", "coppice-plugin-hill-climb"), "junction");
    const bin = join(folder, "node_modules", "coppice", "dist", "bin.js");
    const there = (...args: string[]) => JSON.parse(run(process.execPath, [bin, ...args, "--json"], project));
    expect(there("plugins").plugins).toContainEqual(
      expect.objectContaining({
        name: "hill-climb",
        package: "coppice-plugin-hill-climb",
        builtIn: false,
        usable: true,
      }),
    );
    const model = join(folder, "node_modules", "@coppice", "demo-model", "model");
    const sums = Array.from({ length: 30 }, (_, i) =>
      JSON.stringify({ prompt: `Compute: ${i} + 7 =`, answer: ` ${i + 7}` }),
    );
    writeFileSync(join(project, "sums.jsonl"), sums.join("\n"));
    const search = [
      "search",
      model,
      "--strategy",
      "hill-climb",
      "--keep",
      "4",
      "--task",
      "sums.jsonl",
      "--budget",
      "9",
      "--no-reconstruct",
    ];
    const result = there(...search, "--seeds", "none", "--set", "swaps=2", "--out", "run");
    expect(result).toMatchObject({ evaluations: 9, samples: { search: 21 } });
    expect(result.best.origin).toMatch(/random|swap/);
  });

  it("runs the shipped model", () => {
    const model = join(folder, "node_modules", "@coppice", "demo-model", "model");
    const task = join(folder, "node_modules", "@coppice", "demo-model", "tasks", "dev", "arith.jsonl");
    const { value, samples } = JSON.parse(coppice("eval", model, "--task", task, "--limit", "20", "--json"));
    expect(samples).toBe(20);
    expect(value).toBeGreaterThan(0.6);
  });
});

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { builtinModules } from "node:module";
import { dirname, join, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { describe, expect, it } from "vitest";

/**
 * Who may use whom: a package may use the packages of lower levels only. Plugins stand on one level, so no plugin
 * can use another.
 */
const levels: readonly (readonly string[])[] = [
  ["core", "demo-model"],
  ["checkpoint", "kernels-webgpu", "onnx"],
  ["evaluate", "calibrate", "allocate", "gguf", "reconstruct", "router-repair", "search", "plugin-kit"],
  [
    "attention",
    "backend-cpu",
    "backend-reference",
    "backend-webgpu",
    "criteria",
    "merging",
    "export-onnx",
    "executor-bullmq",
    "executor-command",
    "executor-local",
    "profiles",
    "quantizers",
    "report",
    "runtime",
    "search-baselines",
    "search-cma-es",
    "search-eep",
    "search-nsga2",
    "solver-highs",
  ],
  ["serve"],
  ["cli"],
];
/** Shipped to authors of tests, so no package needs it to run. */
const testOnly = "plugin-kit";
const maxLines = 400;

const packages = fileURLToPath(new URL("../packages/", import.meta.url));
const folders = readdirSync(packages).filter((name) => existsSync(join(packages, name, "package.json")));
const levelOf = (folder: string) => levels.findIndex((level) => level.includes(folder));
const folderOf = (name: string) => (name === "coppice" ? "cli" : name.replace(/^@coppice\//, ""));
const isOurs = (name: string) => name === "coppice" || name.startsWith("@coppice/");

interface Manifest {
  readonly name: string;
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly peerDependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
}

/** Why `user` may not depend on `used`, or undefined. */
export function wrongArrow(user: string, used: string): string | undefined {
  if (used === testOnly) return `${user} needs ${used} at run time; it is for tests`;
  if (levelOf(used) < levelOf(user)) return undefined;
  return `${user} (level ${levelOf(user)}) uses ${used} (level ${levelOf(used)})`;
}

function sources(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => /\.[cm]?[jt]sx?$/.test(name) && !name.split(sep).includes("node_modules"))
    .map((name) => join(folder, name));
}

const imports = (file: string): string[] =>
  ts.preProcessFile(readFileSync(file, "utf8"), true, true).importedFiles.map(({ fileName }) => fileName);

const packageName = (specifier: string) =>
  specifier
    .split("/")
    .slice(0, specifier.startsWith("@") ? 2 : 1)
    .join("/");

describe("the levels", () => {
  it("name every package once", () => {
    expect(levels.flat().sort()).toEqual([...folders].sort());
  });

  it("forbid what they should", () => {
    expect(wrongArrow("core", "checkpoint")).toBeDefined();
    expect(wrongArrow("search-eep", "criteria")).toBeDefined();
    expect(wrongArrow("evaluate", "search")).toBeDefined();
    expect(wrongArrow("cli", "plugin-kit")).toBeDefined();
    expect(wrongArrow("search-eep", "core")).toBeUndefined();
  });
});

describe.each(folders)("packages/%s", (folder) => {
  const manifest: Manifest = JSON.parse(readFileSync(join(packages, folder, "package.json"), "utf8"));
  const runtime = { ...manifest.dependencies, ...manifest.peerDependencies };

  it("declares only packages of lower levels", () => {
    const wrong = Object.keys(runtime)
      .filter(isOurs)
      .map((name) => wrongArrow(folder, folderOf(name)))
      .filter((reason) => reason !== undefined);
    expect(wrong).toEqual([]);
  });

  it("imports only what it declares, and no other package's files", () => {
    const wrong: string[] = [];
    const root = join(packages, folder, "src");
    for (const file of sources(root)) {
      for (const specifier of imports(file)) {
        const where = `${relative(packages, file)} imports ${specifier}`;
        if (specifier.startsWith(".")) {
          const target = resolve(dirname(file), specifier);
          // A package may embed its own version.
          if (target === join(packages, folder, "package.json")) continue;
          if (!target.startsWith(root + sep)) wrong.push(`${where}: outside its package`);
          else if (!/\.(js|json|wgsl)$/.test(specifier)) wrong.push(`${where}: without its ending`);
        } else if (!specifier.startsWith("node:")) {
          const name = packageName(specifier);
          if (builtinModules.includes(specifier)) wrong.push(`${where}: write node:${specifier}`);
          else if (!(name in runtime)) wrong.push(`${where}: not among its dependencies`);
          const arrow = isOurs(name) ? wrongArrow(folder, folderOf(name)) : undefined;
          if (arrow) wrong.push(`${where}: ${arrow}`);
        }
      }
    }
    expect(wrong).toEqual([]);
  });

  it("tests through published names", () => {
    const wrong: string[] = [];
    const declared = { ...runtime, ...manifest.devDependencies };
    for (const file of sources(join(packages, folder, "test"))) {
      for (const specifier of imports(file)) {
        const where = `${relative(packages, file)} imports ${specifier}`;
        if (specifier.startsWith(".")) {
          const target = resolve(dirname(file), specifier);
          const own = [join(packages, folder), resolve(packages, "../tools")];
          if (!own.some((allowed) => target.startsWith(allowed + sep))) wrong.push(where);
        } else if (!specifier.startsWith("node:")) {
          const name = packageName(specifier);
          if (name !== manifest.name && !(name in declared)) wrong.push(`${where}: not declared`);
        }
      }
    }
    expect(wrong).toEqual([]);
  });

  it("keeps its files short", () => {
    const long = sources(join(packages, folder, "src"))
      .filter((file) => !relative(packages, file).split(sep).includes("gen"))
      .map((file) => ({
        file: relative(packages, file),
        lines: readFileSync(file, "utf8").split("\n").length - 1,
      }))
      .filter(({ lines }) => lines > maxLines);
    expect(long).toEqual([]);
  });
});

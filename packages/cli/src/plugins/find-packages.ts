import { existsSync, readdirSync, realpathSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { type PluginPackage, readManifest, readPluginPackage, record } from "./plugin-manifest.js";

/** Packages whose plugins come with the command. */
const builtInNames = [
  "@coppice/search-eep",
  "@coppice/search-baselines",
  "@coppice/search-cma-es",
  "@coppice/search-nsga2",
  "@coppice/criteria",
  "@coppice/merging",
  "@coppice/quantizers",
  "@coppice/attention",
  "@coppice/backend-cpu",
  "@coppice/backend-reference",
  "@coppice/backend-webgpu",
] as const;

const require = createRequire(import.meta.url);

/** Packages of the built-in plugins, read but not imported. */
export function builtInPackages(): PluginPackage[] {
  return builtInNames.flatMap((name) => {
    const found = readPluginPackage(dirname(require.resolve(`${name}/package.json`)));
    return found ? [found] : [];
  });
}

/**
 * The folder of the package `name` as Node would find it from `cwd`: the package that the user works in when it
 * has that name, else `node_modules` upwards.
 */
export function findPackageFolder(name: string, cwd: string): string | undefined {
  if (!/^(@[a-z0-9][\w.-]*\/)?[a-z0-9][\w.-]*$/i.test(name)) return undefined;
  for (const folder of upwards(cwd)) {
    if (readManifest(folder)?.["name"] === name) return folder;
    const installed = join(folder, "node_modules", ...name.split("/"));
    if (existsSync(join(installed, "package.json"))) return realpathSync(installed);
  }
  return undefined;
}

/**
 * Third-party packages with plugins that are installed where the user works: the project itself, its declared
 * dependencies, and every installed package that is named like a plugin. Nothing is imported.
 */
export function installedPackages(cwd: string): PluginPackage[] {
  const own = new Set<string>(builtInNames);
  const names = new Set<string>();
  for (const folder of upwards(cwd)) {
    const manifest = readManifest(folder);
    if (typeof manifest?.["name"] === "string") names.add(manifest["name"]);
    for (const field of ["dependencies", "devDependencies", "optionalDependencies"]) {
      for (const name of Object.keys(record(manifest?.[field]) ?? {})) names.add(name);
    }
    for (const name of pluginFolders(join(folder, "node_modules"))) names.add(name);
  }
  const found = new Map<string, PluginPackage>();
  for (const name of names) {
    if (own.has(name)) continue;
    const folder = findPackageFolder(name, cwd);
    const plugins = folder === undefined ? undefined : readPluginPackage(folder);
    if (plugins && plugins.plugins.length > 0) found.set(plugins.folder, plugins);
  }
  return [...found.values()].sort((a, b) => a.name.localeCompare(b.name));
}

const pluginPrefix = "coppice-plugin-";

function pluginFolders(modules: string): string[] {
  const list = (folder: string): string[] => {
    try {
      return readdirSync(folder);
    } catch {
      return [];
    }
  };
  return list(modules).flatMap((name) => {
    if (name.startsWith(pluginPrefix)) return [name];
    if (!name.startsWith("@")) return [];
    return list(join(modules, name))
      .filter((inner) => inner.startsWith(pluginPrefix))
      .map((inner) => `${name}/${inner}`);
  });
}

function upwards(cwd: string): string[] {
  const folders: string[] = [];
  for (let folder = cwd; ; folder = dirname(folder)) {
    folders.push(folder);
    if (dirname(folder) === folder) return folders;
  }
}

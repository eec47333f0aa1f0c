import {
  type ConfiguredPlugin,
  CoppiceError,
  createRegistry,
  isPlugin,
  type Plugin,
  type PluginKind,
} from "@coppice/core";
import { builtInPackages, findPackageFolder, installedPackages } from "./find-packages.js";
import { nearNames } from "./near-names.js";
import { packageEntry } from "./package-entry.js";
import { type PluginEntry, type PluginPackage, readPluginPackage } from "./plugin-manifest.js";

/** A plugin whose package was found; nothing is imported yet. */
export interface FoundPlugin {
  readonly kind: PluginKind;
  readonly name: string;
  readonly package: string;
  readonly version: string;
  readonly contract: number;
  readonly summary: string;
  readonly builtIn: boolean;
  /** File URL of the module that exports it. */
  readonly module: string;
  readonly export: string | undefined;
}

/** A plugin as the list shows it, with what would keep it from loading. */
export type ListedPlugin = Omit<FoundPlugin, "module" | "export">;

/** Every plugin that can be named from `cwd`, without importing one. */
export function listPlugins(cwd: string): ListedPlugin[] {
  return [
    ...builtInPackages().flatMap((pkg) => pkg.plugins.map((entry) => listed(pkg, entry, true))),
    ...installedPackages(cwd).flatMap((pkg) => pkg.plugins.map((entry) => listed(pkg, entry, false))),
  ];
}

/**
 * Finds the plugin that the user named: a built-in one, else `coppice-plugin-<kind>-<name>` or
 * `coppice-plugin-<name>` as installed from `cwd`, else any package that the user's project depends on and that
 * declares it. A package name in full, such as `@someone/coppice-plugin-x`, names its only plugin of the kind.
 *
 * Only names that the user wrote may come here, never names from files that came with a model.
 * @throws COPPICE_PLUGIN_NOT_FOUND, COPPICE_PLUGIN_INVALID
 */
export function findPlugin(kind: PluginKind, name: string, cwd: string): FoundPlugin {
  const match = (entry: PluginEntry) => entry.kind === kind && entry.name === name;
  for (const pkg of builtInPackages()) {
    const entry = pkg.plugins.find(match);
    if (entry) return found(pkg, entry, true);
  }
  if (name.startsWith("@") || name.startsWith("coppice-plugin-")) return findInPackage(kind, name, cwd);
  for (const packageName of [`coppice-plugin-${kind}-${name}`, `coppice-plugin-${name}`]) {
    const pkg = openPackage(packageName, cwd);
    const entry = pkg?.plugins.find(match);
    if (pkg && entry) return found(pkg, entry, false);
  }
  for (const pkg of installedPackages(cwd)) {
    const entry = pkg.plugins.find(match);
    if (entry) return found(pkg, entry, false);
  }
  throw notFound(kind, name, cwd, `coppice-plugin-${name}`);
}

/** Imports a plugin. @throws COPPICE_PLUGIN_INVALID, COPPICE_PLUGIN_CONTRACT */
export async function loadPlugin<K extends PluginKind>(
  kind: K,
  name: string,
  cwd: string,
): Promise<{ plugin: Plugin<K>; source: FoundPlugin }> {
  const source = findPlugin(kind, name, cwd);
  let exports: Record<string, unknown>;
  try {
    exports = (await import(source.module)) as Record<string, unknown>;
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_PLUGIN_INVALID",
      `${source.package} cannot be imported: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause, hint: "install its dependencies, or ask its author" },
    );
  }
  const candidates = source.export === undefined ? Object.values(exports) : [exports[source.export]];
  const plugin = candidates.find(
    (value): value is Plugin => isPlugin(value) && value.kind === kind && value.pluginName === source.name,
  );
  if (!plugin) {
    throw new CoppiceError(
      "COPPICE_PLUGIN_INVALID",
      `${source.package} declares the ${kind} plugin "${source.name}" but ` +
        `${source.export === undefined ? "no export" : `its export ${source.export}`} is that plugin`,
      { hint: "the package's code and its package.json disagree; ask its author" },
    );
  }
  const item: ConfiguredPlugin = { plugin, options: {} };
  return { plugin: createRegistry([item]).get(kind, source.name), source };
}

function findInPackage(kind: PluginKind, name: string, cwd: string): FoundPlugin {
  const pkg = openPackage(name, cwd);
  if (!pkg) throw notFound(kind, name, cwd, name);
  const entries = pkg.plugins.filter((entry) => entry.kind === kind);
  const [entry] = entries;
  if (entry && entries.length === 1) return found(pkg, entry, false);
  const offered = pkg.plugins.map((plugin) => `${plugin.kind}:${plugin.name}`).join(", ") || "none";
  throw new CoppiceError(
    "COPPICE_PLUGIN_NOT_FOUND",
    `${name} has ${entries.length} plugins of kind ${kind}, expected one; its plugins are ${offered}`,
    { hint: entries.length > 1 ? "give the plugin's own name instead" : `a ${kind} plugin is needed here` },
  );
}

function openPackage(name: string, cwd: string): PluginPackage | undefined {
  const folder = findPackageFolder(name, cwd);
  return folder === undefined ? undefined : readPluginPackage(folder);
}

function notFound(kind: PluginKind, name: string, cwd: string, install: string): CoppiceError {
  const known = listPlugins(cwd)
    .filter((plugin) => plugin.kind === kind)
    .map((plugin) => plugin.name);
  const near = nearNames(name, known);
  return new CoppiceError(
    "COPPICE_PLUGIN_NOT_FOUND",
    `no ${kind} plugin is named "${name}"; known are ${known.join(", ") || "none"}`,
    {
      hint:
        (near.length > 0 ? `did you mean ${near.join(" or ")}? ` : "") +
        `a plugin that is a package of its own is installed where you work: npm install ${install}`,
      details: { kind, name, known, near, install },
    },
  );
}

function found(pkg: PluginPackage, entry: PluginEntry, builtIn: boolean): FoundPlugin {
  return { ...listed(pkg, entry, builtIn), module: packageEntry(pkg, entry.entry), export: entry.export };
}

function listed(pkg: PluginPackage, entry: PluginEntry, builtIn: boolean): ListedPlugin {
  const { kind, name, contract, summary } = entry;
  return { kind, name, package: pkg.name, version: pkg.version, contract, summary, builtIn };
}

import { existsSync, realpathSync } from "node:fs";
import { join, sep } from "node:path";
import { pathToFileURL } from "node:url";
import { CoppiceError } from "@coppice/core";
import { type PluginPackage, record } from "./plugin-manifest.js";

/** Conditions under which this process imports, the first that a package offers wins. */
const conditions = new Set(["node", "import", "default", "module-sync"]);

/**
 * File URL of an entry of a package that lies anywhere: Node resolves names only from the file that imports, and
 * that file is ours, not the user's.
 */
export function packageEntry(pkg: PluginPackage, entry: string): string {
  const exported = pkg.manifest["exports"];
  const target =
    exported === undefined
      ? entry === "."
        ? (pkg.manifest["main"] ?? "./index.js")
        : entry
      : pick(
          typeof exported === "string" || !hasSubpaths(exported)
            ? root(exported, entry)
            : record(exported)?.[entry],
        );
  if (typeof target === "string") {
    const file = join(pkg.folder, target);
    if (existsSync(file) && realpathSync(file).startsWith(realpathSync(pkg.folder) + sep)) {
      return pathToFileURL(realpathSync(file)).href;
    }
  }
  throw new CoppiceError(
    "COPPICE_PLUGIN_INVALID",
    `${pkg.name} declares a plugin in its entry "${entry}", which leads to ${JSON.stringify(target)}: no file of the package`,
    { hint: "build the package, or correct `exports` in its package.json" },
  );
}

function hasSubpaths(value: unknown): boolean {
  return Object.keys(record(value) ?? {}).some((key) => key.startsWith("."));
}

function root(value: unknown, entry: string): unknown {
  return entry === "." ? value : undefined;
}

function pick(value: unknown, depth = 0): unknown {
  if (Array.isArray(value)) return value.map((item) => pick(item, depth)).find((item) => item !== undefined);
  const branches = record(value);
  if (!branches) return value;
  if (depth > 8) return undefined;
  for (const [condition, target] of Object.entries(branches)) {
    if (!conditions.has(condition)) continue;
    const found = pick(target, depth + 1);
    if (found !== undefined) return found;
  }
  return undefined;
}

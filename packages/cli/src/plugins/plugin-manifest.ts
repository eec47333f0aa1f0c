import { readFileSync } from "node:fs";
import { join } from "node:path";
import { CoppiceError, contractVersions, type PluginKind } from "@coppice/core";

/** One plugin as its package declares it under `coppice.plugins` in package.json. */
export interface PluginEntry {
  readonly kind: PluginKind;
  readonly name: string;
  readonly contract: number;
  readonly summary: string;
  /** Subpath that exports it; default ".". */
  readonly entry: string;
  /** Name of the export; absent: the one of this kind and name. */
  readonly export?: string;
}

/** A package that declares plugins, found but not imported. */
export interface PluginPackage {
  readonly name: string;
  readonly version: string;
  readonly folder: string;
  readonly manifest: Readonly<Record<string, unknown>>;
  readonly plugins: readonly PluginEntry[];
}

/** A package.json beyond this is no package.json. */
const manifestBytes = 4 * 1024 * 1024;
/** No package needs more; a hostile one must not flood the list. */
const pluginLimit = 100;

/** Reads `folder/package.json`; undefined when there is none, or none that declares plugins. */
export function readPluginPackage(folder: string): PluginPackage | undefined {
  const manifest = readManifest(folder);
  const declared = record(manifest?.["coppice"])?.["plugins"];
  if (!manifest || !Array.isArray(declared)) return undefined;
  const name = typeof manifest["name"] === "string" ? manifest["name"] : folder;
  return {
    name,
    version: typeof manifest["version"] === "string" ? manifest["version"] : "0.0.0",
    folder,
    manifest,
    plugins: declared
      .slice(0, pluginLimit)
      .map((value, i) => parseEntry(value, `${name}: coppice.plugins[${i}]`)),
  };
}

export function readManifest(folder: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const text = readFileSync(join(folder, "package.json"), "utf8");
    return text.length > manifestBytes ? undefined : record(JSON.parse(text));
  } catch {
    return undefined;
  }
}

export const pluginKinds = Object.keys(contractVersions) as PluginKind[];

function parseEntry(value: unknown, where: string): PluginEntry {
  const entry = record(value);
  const { kind, name, contract, summary, entry: path, export: exported } = entry ?? {};
  if (!pluginKinds.includes(kind as PluginKind)) {
    throw broken(`${where}.kind is ${JSON.stringify(kind)}, expected ${pluginKinds.join(", ")}`);
  }
  if (typeof name !== "string" || !/^[a-z0-9][a-z0-9-]*$/.test(name)) {
    throw broken(`${where}.name is ${JSON.stringify(name)}, expected small letters, digits and dashes`);
  }
  if (!Number.isSafeInteger(contract)) {
    throw broken(`${where}.contract is ${JSON.stringify(contract)}, expected a whole number`);
  }
  if (path !== undefined && (typeof path !== "string" || !/^\.(\/[\w./-]+)?$/.test(path))) {
    throw broken(`${where}.entry is ${JSON.stringify(path)}, expected an entry of the package such as "."`);
  }
  return {
    kind: kind as PluginKind,
    name,
    contract: contract as number,
    summary: typeof summary === "string" ? summary : "",
    entry: path ?? ".",
    ...(typeof exported === "string" && { export: exported }),
  };
}

function broken(message: string): CoppiceError {
  return new CoppiceError("COPPICE_PLUGIN_INVALID", message, {
    hint: "ask the author of the package, or correct the `coppice` field of its package.json",
  });
}

export function record(value: unknown): Readonly<Record<string, unknown>> | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : undefined;
}

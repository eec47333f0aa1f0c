import { isAbsolute } from "node:path";
import { pathToFileURL } from "node:url";
import {
  type AttentionPlan,
  CoppiceError,
  createRegistry,
  isPlugin,
  type PluginKind,
  type PluginKinds,
  type Registrable,
} from "@coppice/core";
import type { TextAttention } from "@coppice/evaluate";

/** Where workers find a plugin. A name, not a value: every worker imports it for itself. */
export interface PluginSource {
  /**
   * File URL, absolute path or import specifier of the module. A bare specifier resolves from this package; write
   * `import.meta.resolve("@coppice/backend-cpu")` to resolve it from yours.
   */
  readonly module: string;
  /** Name of the export that is the plugin. */
  readonly export?: string;
  /** Name of the plugin, where no export is named. Default: the only one of its kind. */
  readonly name?: string;
  /** Options of the plugin. */
  readonly options?: unknown;
}

/** Where workers find a backend. */
export type BackendSource = PluginSource;

/** What workers limit attention to: a plan, or the masks of a plugin. Survives structured clone. */
export type AttentionSource =
  | { readonly plan: AttentionPlan; readonly masker?: undefined }
  | { readonly masker: PluginSource; readonly plan?: undefined };

/**
 * Imports and creates a plugin.
 * @throws COPPICE_BACKEND_UNAVAILABLE when the module of a backend cannot be imported, COPPICE_PLUGIN_INVALID when another one
 * cannot or it exports no such plugin, COPPICE_PLUGIN_CONTRACT, COPPICE_PLUGIN_OPTIONS, and the plugin's own errors
 */
export async function createPlugin<K extends "backend" | "attention">(
  kind: K,
  source: PluginSource,
): Promise<PluginKinds[K]["instance"]> {
  const { module, options = {} } = source;
  let exports: Record<string, unknown>;
  try {
    exports = (await import(isAbsolute(module) ? pathToFileURL(module).href : module)) as Record<
      string,
      unknown
    >;
  } catch (cause) {
    throw new CoppiceError(
      kind === "backend" ? "COPPICE_BACKEND_UNAVAILABLE" : "COPPICE_PLUGIN_INVALID",
      `the ${kind} module ${module} cannot be imported: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause, hint: `install the package of the ${kind} with its dependencies`, details: { module } },
    );
  }
  const plugin = findExport(kind, source, exports);
  // The registry checks the contract version.
  return createRegistry([plugin]).get(kind, plugin.pluginName).create(options, undefined);
}

function findExport(
  kind: PluginKind,
  { module, export: key, name }: PluginSource,
  exports: Readonly<Record<string, unknown>>,
): Registrable & { readonly pluginName: string } {
  const plugins = Object.entries(exports).flatMap(([exported, value]) =>
    isPlugin(value) && value.kind === kind ? [{ exported, value }] : [],
  );
  const wanted = key ?? name;
  const found =
    wanted === undefined
      ? plugins.length === 1 && plugins[0]
      : plugins.find(({ exported, value }) => (key === undefined ? value.pluginName : exported) === wanted);
  if (found) return found.value as Registrable & { readonly pluginName: string };
  throw new CoppiceError(
    "COPPICE_PLUGIN_INVALID",
    `${module} exports ${wanted === undefined ? `${plugins.length} ${kind} plugins` : `no ${kind} plugin "${wanted}"`}; ` +
      `its ${kind} plugins are ${plugins.map(({ exported }) => exported).join(", ") || "none"}`,
    { details: { module, export: wanted } },
  );
}

/**
 * What evaluation needs of an attention source.
 * @throws COPPICE_USAGE for a plugin that has no masks, and what `createPlugin` does
 */
export async function openAttention(source: AttentionSource): Promise<TextAttention> {
  if (source.plan) return { plan: source.plan };
  const method = await createPlugin("attention", source.masker);
  const { masker } = method;
  if (masker) return { masker: masker.bind(method) };
  const { name = source.masker.export ?? source.masker.module } = source.masker;
  throw new CoppiceError("COPPICE_USAGE", `the attention plugin ${name} has no masks, it makes plans`, {
    hint: "make a plan with it and give that",
  });
}

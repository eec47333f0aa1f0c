import { isAbsolute } from "node:path";
import { pathToFileURL } from "node:url";
import { type Backend, CoppiceError, createRegistry, isPlugin, type Registrable } from "@coppice/core";

/** Where workers find a backend. A name, not a value: every worker imports it for itself. */
export interface BackendSource {
  /**
   * File URL, absolute path or import specifier of the module. A bare specifier resolves from this package; write
   * `import.meta.resolve("@coppice/backend-cpu")` to resolve it from yours.
   */
  readonly module: string;
  /** Name of the export that is the backend plugin. Default: the only one that is. */
  readonly export?: string;
  /** Options of the plugin. */
  readonly options?: unknown;
}

/**
 * Imports and creates a backend.
 * @throws COPPICE_BACKEND_UNAVAILABLE when the module cannot be imported, COPPICE_PLUGIN_INVALID when it exports no
 * backend plugin of that name, COPPICE_PLUGIN_CONTRACT, COPPICE_PLUGIN_OPTIONS, and the plugin's own errors
 */
export async function createBackend(source: BackendSource): Promise<Backend> {
  const { module, export: name, options = {} } = source;
  let exports: Record<string, unknown>;
  try {
    exports = (await import(isAbsolute(module) ? pathToFileURL(module).href : module)) as Record<
      string,
      unknown
    >;
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNAVAILABLE",
      `the backend module ${module} cannot be imported: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause, hint: "install the package of the backend with its dependencies", details: { module } },
    );
  }
  const backends = Object.entries(exports).filter(([, value]) => isPlugin(value) && value.kind === "backend");
  const found =
    name === undefined && backends.length === 1 ? backends[0] : backends.find(([key]) => key === name);
  if (!found) {
    throw new CoppiceError(
      "COPPICE_PLUGIN_INVALID",
      `${module} exports ${name === undefined ? `${backends.length} backend plugins` : `no backend plugin "${name}"`}; ` +
        `its backend plugins are ${backends.map(([key]) => key).join(", ") || "none"}`,
      { details: { module, export: name } },
    );
  }
  const plugin = found[1] as Registrable & { readonly pluginName: string };
  // The registry checks the contract version.
  return createRegistry([plugin]).create("backend", plugin.pluginName, options, undefined);
}

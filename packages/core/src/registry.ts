import { CoppiceError } from "./errors.js";
import {
  type ConfiguredPlugin,
  contractVersions,
  isPlugin,
  type OptionsOf,
  type Plugin,
  type PluginKind,
  type PluginKinds,
} from "./plugin.js";

/** The plugins of one application. An instance, never a global. */
export interface Registry {
  /** @throws COPPICE_PLUGIN_NOT_FOUND with near-miss names */
  get<K extends PluginKind>(kind: K, name: string): Plugin<K>;
  has(kind: PluginKind, name: string): boolean;
  list(kind?: PluginKind): Plugin[];
  /**
   * Creates an instance of a plugin by name. Options that the plugin was registered with are the defaults of
   * those given here.
   * @throws COPPICE_PLUGIN_NOT_FOUND, COPPICE_PLUGIN_OPTIONS
   */
  create<K extends PluginKind, N extends string>(
    kind: K,
    name: N,
    options: OptionsOf<K, N>,
    context: PluginKinds[K]["context"],
  ): Promise<PluginKinds[K]["instance"]>;
  /** A registry with these plugins besides the present ones. */
  with(...plugins: readonly Registrable[]): Registry;
}

/** A plugin as it is, or configured: `eep` or `eep({ keep: 4 })`. */
// biome-ignore lint/suspicious/noExplicitAny: plugins of all option types stand in one list
export type Registrable = Plugin<any, any, any> | ConfiguredPlugin<any, any>;

/**
 * @throws COPPICE_PLUGIN_INVALID for a value that is no plugin, COPPICE_PLUGIN_CONTRACT for one of another
 * contract version, COPPICE_PLUGIN_DUPLICATE for a second one of the same kind and name
 */
export function createRegistry(plugins: readonly Registrable[]): Registry {
  const entries = new Map<string, ConfiguredPlugin>();
  for (const item of plugins) {
    const entry = "plugin" in item ? item : { plugin: item, options: {} };
    checkPlugin(entry.plugin);
    const id = `${entry.plugin.kind}:${entry.plugin.pluginName}`;
    if (entries.has(id)) {
      throw new CoppiceError("COPPICE_PLUGIN_DUPLICATE", `the plugin ${id} is registered twice`);
    }
    entries.set(id, entry);
  }

  const find = (kind: PluginKind, name: string): ConfiguredPlugin => {
    const entry = entries.get(`${kind}:${name}`);
    if (entry) return entry;
    const known = [...entries.values()].filter(({ plugin }) => plugin.kind === kind);
    const names = known.map(({ plugin }) => plugin.pluginName);
    throw new CoppiceError(
      "COPPICE_PLUGIN_NOT_FOUND",
      `no ${kind} plugin is named "${name}"; known are ${names.join(", ") || "none"}`,
      { details: { kind, name, known: names } },
    );
  };

  return {
    get: <K extends PluginKind>(kind: K, name: string) => find(kind, name).plugin as unknown as Plugin<K>,
    has: (kind, name) => entries.has(`${kind}:${name}`),
    list: (kind) =>
      [...entries.values()].map(({ plugin }) => plugin).filter((plugin) => !kind || plugin.kind === kind),
    create: async <K extends PluginKind, N extends string>(
      kind: K,
      name: N,
      options: OptionsOf<K, N>,
      context: PluginKinds[K]["context"],
    ) => {
      const entry = find(kind, name);
      const merged = { ...(entry.options as object), ...(options as object) };
      return (entry.plugin as unknown as Plugin<K>).create(merged, context);
    },
    with: (...more) => createRegistry([...entries.values(), ...more]),
  };
}

function checkPlugin(plugin: unknown): asserts plugin is Plugin {
  if (!isPlugin(plugin)) {
    throw new CoppiceError(
      "COPPICE_PLUGIN_INVALID",
      `${typeof plugin === "function" ? plugin.name || "a function" : String(plugin)} is not a plugin`,
      { hint: "make it with definePlugin of @coppice/core" },
    );
  }
  const supported = contractVersions[plugin.kind];
  if (supported === undefined || plugin.contract !== supported) {
    throw new CoppiceError(
      "COPPICE_PLUGIN_CONTRACT",
      `the plugin ${plugin.kind}:${plugin.pluginName} is written for contract ${plugin.contract} of its kind; ` +
        `this release supports ${supported ?? "no such kind"}`,
      { hint: "install a release of the plugin that fits this release of @coppice/core" },
    );
  }
}

import type { StandardSchemaV1 } from "@standard-schema/spec";
import type { AttentionMethod } from "./attention-method.js";
import type { Backend } from "./backend.js";
import type { ChoiceSolver } from "./choice-solver.js";
import type { Criterion } from "./criterion.js";
import { CoppiceError } from "./errors.js";
import type { Merger } from "./merger.js";
import type { Quantizer } from "./quantizer.js";
import type { SearchContext, SearchStrategy } from "./search.js";

/** Options of search plugins by name; plugins add themselves by declaration merging. */
export interface SearchPlugins {}
/** Options of criterion plugins by name. */
export interface CriterionPlugins {}
/** Options of merger plugins by name. */
export interface MergerPlugins {}
/** Options of quantizer plugins by name. */
export interface QuantizerPlugins {}
/** Options of backend plugins by name. */
export interface BackendPlugins {}
/** Options of attention plugins by name. */
export interface AttentionPlugins {}
/** Options of solver plugins by name. */
export interface SolverPlugins {}

/** What each kind of plugin makes (`instance`) and is given besides its options (`context`). */
export interface PluginKinds {
  search: { options: SearchPlugins; instance: SearchStrategy; context: SearchContext };
  criterion: { options: CriterionPlugins; instance: Criterion; context: undefined };
  merger: { options: MergerPlugins; instance: Merger; context: undefined };
  quantizer: { options: QuantizerPlugins; instance: Quantizer; context: undefined };
  backend: { options: BackendPlugins; instance: Backend; context: undefined };
  attention: { options: AttentionPlugins; instance: AttentionMethod; context: undefined };
  solver: { options: SolverPlugins; instance: ChoiceSolver; context: undefined };
}

export type PluginKind = keyof PluginKinds;

/** Contract version of every kind; a plugin states the one it was written for. */
export const contractVersions = {
  search: 1,
  criterion: 1,
  merger: 1,
  quantizer: 1,
  backend: 1,
  attention: 1,
  solver: 1,
} as const satisfies Record<PluginKind, number>;

const brand = Symbol.for("coppice.plugin");

export interface PluginDefinition<K extends PluginKind, N extends string, I, O> {
  readonly kind: K;
  readonly name: N;
  /** Integer version of the kind's contract; see `contractVersions`. */
  readonly contract: number;
  /** One sentence for `coppice plugins`. */
  readonly summary: string;
  /** Paper or page that defines the method. */
  readonly reference?: string;
  /** Validates options and fills in defaults; any Standard Schema validator (valibot, zod, arktype ...). */
  readonly options: StandardSchemaV1<I, O>;
  create(
    options: O,
    context: PluginKinds[K]["context"],
  ): PluginKinds[K]["instance"] | Promise<PluginKinds[K]["instance"]>;
}

/** A plugin with the options that its user chose; what `eep({ keep: 4 })` returns. */
export interface ConfiguredPlugin<K extends PluginKind = PluginKind, N extends string = string> {
  readonly plugin: Plugin<K, N>;
  readonly options: unknown;
}

/**
 * A plugin: call it with options to configure it, or pass it to `createRegistry` as it is.
 * `I` is what users write; it equals the options that the plugin declared under its name.
 */
export interface Plugin<K extends PluginKind = PluginKind, N extends string = string, I = never> {
  (options?: I): ConfiguredPlugin<K, N>;
  readonly kind: K;
  readonly pluginName: N;
  readonly contract: number;
  readonly summary: string;
  readonly reference: string | undefined;
  /** Validates `options` and creates an instance. @throws COPPICE_PLUGIN_OPTIONS */
  create(options: unknown, context: PluginKinds[K]["context"]): Promise<PluginKinds[K]["instance"]>;
}

/** Options that the plugin `N` of kind `K` declared, or unknown for one that declared none. */
export type OptionsOf<K extends PluginKind, N extends string> = N extends keyof PluginKinds[K]["options"]
  ? PluginKinds[K]["options"][N]
  : unknown;

/**
 * Defines a plugin. The input type of its schema must be the type that it declared under its name.
 *
 * @example
 * declare module "@coppice/core" {
 *   interface SearchPlugins { "hill-climb": { keep: number } }
 * }
 * export const hillClimb = definePlugin({
 *   kind: "search", name: "hill-climb", contract: 1, summary: "One swap at a time.",
 *   options: v.strictObject({ keep: v.number() }),
 *   create: (options, context) => new HillClimb(options, context),
 * });
 */
export function definePlugin<K extends PluginKind, N extends keyof PluginKinds[K]["options"] & string, O>(
  definition: PluginDefinition<K, N, OptionsOf<K, N>, O>,
): Plugin<K, N, OptionsOf<K, N>> {
  const { kind, name, contract, summary, reference, options: schema, create } = definition;
  const configure = (options?: OptionsOf<K, N>): ConfiguredPlugin<K, N> => ({
    plugin: plugin as unknown as Plugin<K, N>,
    options: options ?? {},
  });
  const plugin = Object.assign(configure, {
    kind,
    pluginName: name,
    contract,
    summary,
    reference,
    async create(options: unknown, context: PluginKinds[K]["context"]) {
      return create(await validateOptions(schema, options, `${kind}:${name}`), context);
    },
  });
  Object.defineProperty(plugin, brand, { value: true });
  return plugin;
}

/** Recognises plugins by their brand, so that two installed copies of core still agree. */
export function isPlugin(value: unknown): value is Plugin {
  return typeof value === "function" && brand in value;
}

async function validateOptions<O>(
  schema: StandardSchemaV1<unknown, O>,
  options: unknown,
  id: string,
): Promise<O> {
  const result = await schema["~standard"].validate(options);
  if (!result.issues) return result.value;
  const problems = result.issues.map(({ path, message }) => {
    const keys = path?.map((part) => String(typeof part === "object" ? part.key : part)) ?? [];
    return keys.length > 0 ? `${keys.join(".")}: ${message}` : message;
  });
  throw new CoppiceError(
    "COPPICE_PLUGIN_OPTIONS",
    `options of ${id} are not usable: ${problems.join("; ")}`,
    {
      details: { plugin: id, problems },
    },
  );
}

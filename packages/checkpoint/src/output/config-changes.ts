import { CoppiceError, type MoeLayer, type MoeModel, moeLayers } from "@coppice/core";
import type { CountPaths } from "../families/detect.js";
import type { ExpertTensors } from "../families/expert-tensors.js";
import { type JsonObject, ownValue } from "../json-object.js";
import { skipRulesKey } from "../skip-rules.js";
import { checkExpertPatterns } from "./expert-patterns.js";
import type { ExpertSlot } from "./expert-slots.js";
import type { ExportShape } from "./export-shape.js";

export interface ConfigSource {
  readonly model: MoeModel;
  readonly config: JsonObject;
  readonly edits: readonly ExpertTensors[];
  readonly detected: {
    readonly counts: CountPaths;
    readonly family: { readonly config: Partial<CountPaths> };
  };
}

export interface ConfigChanges {
  /** New JSON texts of values, by path: keys joined by dots. */
  readonly replace: ReadonlyMap<string, string>;
  /** JSON texts of values that config.json left to a default, by path. */
  readonly insert: ReadonlyMap<string, string>;
}

/**
 * Everything in config.json that a new shape changes. Lists with one entry per layer (HunYuan, and the runtime layout)
 * get that of each layer, as do skip rules (`skipRulesKey`); in other lists (ERNIE's capacities) every element that equals the old number changes. Lists in
 * `quantization_config` that name modules keep those of the kept experts under their new numbers.
 * @throws COPPICE_PLAN_EXPORT when a number must be stated and config.json has no place for it
 */
export function configChanges(source: ConfigSource, shape: ExportShape): ConfigChanges {
  const { model, config, detected, edits } = source;
  const { counts } = detected;
  const layers = moeLayers(model);
  const replace = new Map<string, string>();
  const insert = new Map<string, string>();
  const numbers = new NumberWriter(source, shape, replace);
  const [{ feedForward: first }] = layers as [MoeLayer];
  const state = (key: "experts" | "topK" | "groups" | "groupsKept", before: Numbers, after: Numbers) => {
    if (numbers.write(counts[key], before, after)) return;
    if (layers.every(({ index }) => before(index) === after(index))) return;
    insert.set(...missingPlace(source, key, numbers.text(after)));
  };
  const spec = (layer: number) => layers.find(({ index }) => index === layer)?.feedForward;
  const shaped = new Map(shape.layers.map((layer) => [layer.layer, layer]));
  state(
    "experts",
    (layer) => spec(layer)?.experts.length,
    (layer) => shaped.get(layer)?.slots.length,
  );
  state(
    "topK",
    (layer) => spec(layer)?.router.topK,
    (layer) => shaped.get(layer)?.topK,
  );
  const old = first.experts.length;
  for (const path of counts.capacity) {
    const present = valueAt(config, path);
    if (Array.isArray(present)) replaceEqual(replace, path, present, old, shape.experts);
    else if (present === old) replace.set(path, String(shape.experts));
  }
  const { groups } = first.router;
  if (groups) {
    state(
      "groups",
      () => groups.count,
      () => shape.groups?.count ?? 1,
    );
    state(
      "groupsKept",
      () => groups.keep,
      () => shape.groups?.keep ?? 1,
    );
  } else if (shape.experts !== old) {
    // Also where the router ignores its groups: loaders divide by them.
    for (const path of [...counts.groups, ...counts.groupsKept]) {
      if (typeof valueAt(config, path) === "number") replace.set(path, "1");
    }
  }
  const rules = model.layers.map(({ index }) => shaped.get(index)?.skip ?? null);
  const hasRules = rules.some((rule) => rule !== null);
  if (ownValue(config, skipRulesKey) !== undefined)
    replace.set(skipRulesKey, hasRules ? listText(rules) : "null");
  else if (hasRules) insert.set(skipRulesKey, listText(rules));
  if (shape.layers.some(({ layer, slots }) => renumbers(slots, spec(layer)?.experts.length))) {
    for (const key of quantizationKeys) {
      const settings = valueAt(config, key);
      if (typeof settings === "object" && settings !== null) checkExpertPatterns(settings as JsonObject, key);
    }
  }
  for (const [path, list] of moduleLists(config)) {
    const renamed = renameModules(list, edits, shape);
    if (renamed) replace.set(path, listText(renamed));
  }
  return { replace, insert };
}

/** The number of a layer; undefined for one without experts. */
type Numbers = (layer: number) => number | undefined;

class NumberWriter {
  readonly #source: ConfigSource;
  readonly #shape: ExportShape;
  readonly #replace: Map<string, string>;

  constructor(source: ConfigSource, shape: ExportShape, replace: Map<string, string>) {
    this.#source = source;
    this.#shape = shape;
    this.#replace = replace;
  }

  /** True when there is a path to write to. */
  write(paths: readonly string[], before: Numbers, after: Numbers): boolean {
    const { config, model } = this.#source;
    for (const path of paths) {
      const present = valueAt(config, path);
      if (Array.isArray(present) && present.length >= model.layers.length) {
        const [[old, ...others], [value]] = [[...this.#all(before)], [...this.#all(after)]];
        const changed = present.map(
          (item, layer) => after(layer) ?? (item === old && others.length === 0 ? value : item),
        );
        // Layers of different numbers that have become equal: no longer the runtime layout.
        const isUniform = this.#all(after).size === 1 && this.#all(before).size > 1;
        this.#replace.set(path, isUniform ? this.text(after) : listText(changed));
      } else if (Array.isArray(present)) {
        const [[old], [value]] = [[...this.#all(before)], [...this.#all(after)]];
        replaceEqual(this.#replace, path, present, old as number, value as number);
      } else this.#replace.set(path, this.text(after));
    }
    return paths.length > 0;
  }

  /** One number, or where layers differ one per layer; layers without experts get the largest, which nobody reads. */
  text(numbers: Numbers): string {
    const all = [...this.#all(numbers)];
    if (all.length === 1) return String(all[0]);
    return listText(this.#source.model.layers.map(({ index }) => numbers(index) ?? Math.max(...all)));
  }

  #all(numbers: Numbers): Set<number> {
    return new Set(this.#shape.layers.flatMap(({ layer }) => numbers(layer) ?? []));
  }
}

function replaceEqual(
  changes: Map<string, string>,
  path: string,
  list: readonly unknown[],
  old: number,
  value: number,
): void {
  if (old === value || !list.includes(old)) return;
  changes.set(path, listText(list.map((item) => (item === old ? value : item))));
}

/** Where a number belongs that config.json leaves to the family's default: beside the number of experts. */
function missingPlace(
  { config, detected }: ConfigSource,
  key: "experts" | "topK" | "groups" | "groupsKept",
  text: string,
): [path: string, text: string] {
  const stated = detected.counts.experts[0] ?? "";
  const own = detected.family.config.experts?.find((path) => stated.endsWith(path)) ?? stated;
  const path = `${stated.slice(0, stated.length - own.length)}${detected.family.config[key]?.[0]}`;
  const parent = path.includes(".") ? valueAt(config, path.slice(0, path.lastIndexOf("."))) : config;
  if (detected.family.config[key]?.[0] !== undefined && typeof parent === "object" && parent !== null) {
    return [path, text];
  }
  throw new CoppiceError(
    "COPPICE_PLAN_EXPORT",
    `the plan changes a number to ${text} that config.json leaves to a default and has no place for (${key})`,
    { hint: "state the number in config.json", details: { key, value: text } },
  );
}

function valueAt(config: JsonObject, path: string): unknown {
  let value: unknown = config;
  for (const key of path.split(".")) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
    value = ownValue(value as JsonObject, key);
  }
  return value;
}

function listText(list: readonly unknown[]): string {
  return `[${list.map((item) => JSON.stringify(item)).join(", ")}]`;
}

function renumbers(slots: readonly ExpertSlot[], experts: number | undefined): boolean {
  return slots.length !== experts || slots.some((slot, i) => slot.kind !== "expert" || slot.expert !== i);
}

const quantizationKeys = ["quantization_config", "compression_config"];

/** Every list of texts below a `quantization_config`, with its path. */
function moduleLists(config: JsonObject): Map<string, readonly string[]> {
  const found = new Map<string, readonly string[]>();
  const walk = (value: unknown, path: readonly string[], inside: boolean) => {
    if (Array.isArray(value)) {
      const isNames = value.length > 0 && value.every((item) => typeof item === "string");
      if (inside && isNames) found.set(path.join("."), value as string[]);
      return;
    }
    // Nothing that a config needs lies deeper.
    if (typeof value !== "object" || value === null || path.length > 8) return;
    for (const [key, item] of Object.entries(value)) {
      walk(item, [...path, key], inside || quantizationKeys.includes(key));
    }
  };
  walk(config, [], false);
  return found;
}

/** The list with experts renumbered and dropped ones left out; undefined when it names none that changes. */
function renameModules(
  names: readonly string[],
  edits: readonly ExpertTensors[],
  shape: ExportShape,
): string[] | undefined {
  const slots = expertNumbers(edits, shape);
  let changed = false;
  const renamed = names.flatMap((name) => {
    const parts = name.split(".");
    for (let at = parts.length - 1; at > 0; at--) {
      if (!/^\d+$/.test(parts[at] as string)) continue;
      const numbers = slots.get(parts.slice(0, at).join(".")) ?? slots.get(parts.slice(1, at).join("."));
      if (!numbers) continue;
      changed = true;
      const slot = numbers.get(Number(parts[at]));
      return slot === undefined ? [] : [parts.with(at, String(slot)).join(".")];
    }
    return [name];
  });
  return changed ? renamed : undefined;
}

/**
 * For the names of modules that hold experts (`model.layers.3.mlp.experts`), with and without their first part: the
 * new number of each expert that is kept.
 */
function expertNumbers(
  edits: readonly ExpertTensors[],
  shape: ExportShape,
): Map<string, ReadonlyMap<number, number>> {
  const layers = new Map(shape.layers.map((layer) => [layer.layer, layer.slots]));
  const found = new Map<string, ReadonlyMap<number, number>>();
  for (const { layer, separate } of edits) {
    const slots = layers.get(layer);
    if (!slots) continue;
    const numbers = new Map(
      slots.flatMap((slot, position) => (slot.kind === "pad" ? [] : [[slot.expert, position] as const])),
    );
    const modules = new Set(separate.map(({ pattern }) => pattern.slice(0, pattern.indexOf(".{e}"))));
    for (const name of modules) {
      found.set(name, numbers);
      found.set(name.slice(name.indexOf(".") + 1), numbers);
    }
  }
  return found;
}

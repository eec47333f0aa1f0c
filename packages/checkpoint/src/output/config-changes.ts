import { type MoeModel, moeLayers } from "@coppice/core";
import type { ExpertTensors } from "../families/expert-tensors.js";
import { type JsonObject, ownValue } from "../json-object.js";
import type { ExportShape } from "./export-shape.js";

/** Paths in config.json, keys joined by dots, that state numbers which plans change. */
export interface CountPaths {
  readonly experts: readonly string[];
  readonly topK: readonly string[];
  /** Number of expert groups, and of those a token may use. */
  readonly groups: readonly string[];
  readonly groupsKept: readonly string[];
  /** Lists of capacities that repeat the number of experts (ERNIE `moe_capacity`). */
  readonly capacity: readonly string[];
}

export interface ConfigSource {
  readonly model: MoeModel;
  readonly config: JsonObject;
  readonly edits: readonly ExpertTensors[];
  readonly detected: { readonly counts: CountPaths };
}

/**
 * New JSON texts of values in config.json, by path. In lists (one entry per layer, or ERNIE's capacities) every element
 * that equals the old number changes; lists in `quantization_config` that name modules keep those of the kept experts
 * under their new numbers.
 */
export function configChanges(source: ConfigSource, shape: ExportShape): Map<string, string> {
  const { model, config, detected } = source;
  const { counts } = detected;
  const { router, experts } = (moeLayers(model)[0] as ReturnType<typeof moeLayers>[0]).feedForward;
  const changes = new Map<string, string>();
  const set = (paths: readonly string[], old: number, value: number) => {
    for (const path of paths) {
      const present = valueAt(config, path);
      if (!Array.isArray(present)) changes.set(path, String(value));
      else if (old !== value)
        changes.set(path, listText(present.map((item) => (item === old ? value : item))));
    }
  };
  set(counts.experts, experts.length, shape.experts);
  set(counts.topK, router.topK, shape.topK);
  const capacities = counts.capacity.filter((path) => {
    const present = valueAt(config, path);
    return Array.isArray(present) || present === experts.length;
  });
  set(capacities, experts.length, shape.experts);
  if (shape.groups) {
    set(counts.groups, router.groups?.count ?? 1, shape.groups.count);
    set(counts.groupsKept, router.groups?.keep ?? 1, shape.groups.keep);
  } else if (router.groups || shape.experts !== experts.length) {
    // One group of all experts, also where a router that ignores groups states some: loaders divide by them.
    for (const path of [...counts.groups, ...counts.groupsKept]) {
      if (typeof valueAt(config, path) === "number") changes.set(path, "1");
    }
  }
  for (const [path, list] of moduleLists(config)) {
    const renamed = renameModules(list, source.edits, shape);
    if (renamed) changes.set(path, listText(renamed));
  }
  return changes;
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

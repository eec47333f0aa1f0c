import { type DecoderLayer, parseSkip, type SkipRule } from "@coppice/core";
import type { ConfigReader } from "./config.js";
import type { ModelDescription } from "./families/describe.js";

/**
 * Key of config.json, at its top, under which the runtime layout keeps a skip rule or null for every layer. Stock
 * runtimes know nothing of it.
 */
export const skipRulesKey = "coppice_skip";

/** The model with the skip rules that its config states. @throws COPPICE_FORMAT_CONFIG */
export function withSkipRules(model: ModelDescription, root: ConfigReader): ModelDescription {
  const stated = root.get(skipRulesKey)?.value;
  if (stated === undefined) return model;
  if (!Array.isArray(stated) || stated.length !== model.layers.length) {
    throw root.invalid(
      skipRulesKey,
      stated,
      `a list with a rule or null for each of ${model.layers.length} layers`,
    );
  }
  const layers = model.layers.map((layer): DecoderLayer => {
    const entry: unknown = stated[layer.index];
    if (entry === null) return layer;
    const { feedForward } = layer;
    if (feedForward.kind !== "moe") {
      throw root.invalid(`${skipRulesKey}[${layer.index}]`, entry, "null, because the layer has no experts");
    }
    const skip = readRule(entry, root, `${skipRulesKey}[${layer.index}]`);
    return { ...layer, feedForward: { ...feedForward, router: { ...feedForward.router, skip } } };
  });
  return { ...model, layers };
}

function readRule(entry: unknown, root: ConfigReader, key: string): SkipRule {
  try {
    return parseSkip(entry, key);
  } catch {
    throw root.invalid(
      key,
      entry,
      'null or {"rule": "ratio" or "top-p", "threshold": 0 to 1, "spare": 0 to 1}',
    );
  }
}

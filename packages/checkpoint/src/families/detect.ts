import { CoppiceError, type TensorRef } from "@coppice/core";
import type { ConfigReader } from "../config.js";
import { showValue } from "../json-object.js";
import { type ExpertLayout, type FamilyDescription, tensorName } from "./family.js";
import { mixtral } from "./mixtral.js";
import { qwen3Moe } from "./qwen3-moe.js";

/** Every family that this release reads. */
export const families: readonly FamilyDescription[] = [mixtral, qwen3Moe];

export interface Detected {
  readonly family: FamilyDescription;
  readonly layout: ExpertLayout;
  readonly counts: CountPaths;
}

/**
 * Where config.json states counts that surgery changes: paths of keys joined by dots, those that are present, in the
 * order of preference.
 */
export interface CountPaths {
  readonly experts: readonly string[];
  readonly topK: readonly string[];
  readonly groups: readonly string[];
  readonly groupsKept: readonly string[];
  /** Lists of limits on tokens per expert that must have as many entries as before (ERNIE `moe_capacity`). */
  readonly capacity: readonly string[];
}

/**
 * Finds the family by `model_type`, and the layout of its experts by tensor names; a config without `model_type` is
 * recognised by tensor names alone. Names never override a stated `model_type`, because families of equal names
 * route differently.
 * @throws COPPICE_FAMILY_UNKNOWN, COPPICE_FAMILY_UNSUPPORTED
 */
export function detectFamily(config: ConfigReader, tensors: ReadonlyMap<string, TensorRef>): Detected {
  const modelType = config.string("model_type");
  const stated = families.find((family) => family.name === modelType);
  if (stated) {
    const layout = findLayout(stated, config, tensors);
    if (layout) return { family: stated, layout, counts: findCounts(stated, config) };
    const [stock] = stated.layouts as readonly [ExpertLayout];
    throw new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      `config.json says model_type "${stated.name}", but the tensors fit no ${stated.title} layout: ` +
        `they are such as ${samples(tensors)}; expected for example ` +
        tensorName(stock.router, firstMoeLayer(stated, config)),
      { details: { modelType: stated.name, tensors: sampleNames(tensors) } },
    );
  }
  if (modelType === undefined) {
    const matches = families.flatMap((family) => {
      const layout = hasNormsOf(family, tensors) ? findLayout(family, config, tensors) : undefined;
      return layout ? [{ family, layout, counts: findCounts(family, config) }] : [];
    });
    if (matches.length === 1) return matches[0] as Detected;
  }
  const architectures = config.get("architectures")?.value;
  throw new CoppiceError(
    "COPPICE_FAMILY_UNKNOWN",
    `no family description fits: model_type is ${showValue(modelType ?? null)}, architectures are ` +
      `${showValue(architectures ?? null)}, tensors are such as ${samples(tensors)}; ` +
      `known are ${families.map(({ name }) => name).join(", ")}`,
    { details: { modelType: modelType ?? null, tensors: sampleNames(tensors) } },
  );
}

function findCounts(family: FamilyDescription, config: ConfigReader): CountPaths {
  const present = (keys: readonly string[]) => keys.filter((key) => config.get(key));
  const { experts, topK } = family.config;
  return { experts: present(experts), topK: present(topK), groups: [], groupsKept: [], capacity: [] };
}

function findLayout(
  family: FamilyDescription,
  config: ConfigReader,
  tensors: ReadonlyMap<string, TensorRef>,
): ExpertLayout | undefined {
  const layer = firstMoeLayer(family, config);
  return family.layouts.find((layout) => {
    const expert = layout.kind === "separate" ? layout.experts.gate : layout.gateUp;
    return tensors.has(tensorName(layout.router, layer)) && tensors.has(tensorName(expert, layer, 0));
  });
}

/** Layer 0 when a family's rule leaves none with experts: the search for its tensors then fails with a name. */
function firstMoeLayer(family: FamilyDescription, config: ConfigReader): number {
  if (!family.moeLayers) return 0;
  const isMoe = family.moeLayers(config);
  const layers = Math.min(config.integer("num_hidden_layers"), 10_000);
  for (let layer = 0; layer < layers; layer++) if (isMoe(layer)) return layer;
  return 0;
}

/** True when the checkpoint has query norms exactly when the family does: what tells equal layouts apart. */
function hasNormsOf(family: FamilyDescription, tensors: ReadonlyMap<string, TensorRef>): boolean {
  const { query, queryNorm } = family.tensors;
  const norm = tensorName(queryNorm ?? `${query.replace("q_proj", "q_norm")}.weight`, 0);
  return tensors.has(norm) === (queryNorm !== undefined);
}

function sampleNames(tensors: ReadonlyMap<string, TensorRef>): string[] {
  const names = [...tensors.keys()];
  const preferred = names.filter((name) => /expert|router|gate/.test(name)).slice(0, 2);
  return [...new Set([...preferred, ...names.slice(0, 3)])].slice(0, 4).map((name) => name.slice(0, 120));
}

function samples(tensors: ReadonlyMap<string, TensorRef>): string {
  return sampleNames(tensors).join(", ") || "none";
}

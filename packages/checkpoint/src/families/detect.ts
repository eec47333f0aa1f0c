import { CoppiceError, type TensorRef } from "@coppice/core";
import type { ConfigReader } from "../config.js";
import { showValue } from "../json-object.js";
import { contradiction, layoutsAt } from "./expert-edits.js";
import { families } from "./families.js";
import type { ExpertLayout, FamilyDescription } from "./family.js";
import type { NameIndex } from "./name-index.js";
import { findNaming, type Naming } from "./naming.js";

/**
 * Where config.json states counts that surgery changes: paths of keys joined by dots, those that are present, in the
 * order of preference. A value may be a list with one entry per layer (HunYuan).
 */
export interface CountPaths {
  readonly experts: readonly string[];
  readonly topK: readonly string[];
  readonly groups: readonly string[];
  readonly groupsKept: readonly string[];
  /** Limits on tokens per expert at several stages (ERNIE `moe_capacity`). */
  readonly capacity: readonly string[];
}

export interface Detected {
  readonly family: FamilyDescription;
  /** The layout of all its experts. */
  readonly layout: ExpertLayout;
  readonly counts: CountPaths;
  /** `model_type` of the multimodal model whose language model this is. */
  readonly wrapper?: string;
}

/** A family that may describe a checkpoint, with what its description is read from. */
export interface Candidate extends Omit<Detected, "layout"> {
  /** The part of config.json that describes the language model. */
  readonly config: ConfigReader;
  readonly naming: Naming;
}

/** Where configs of models around a language model keep its config. */
const textConfigs = ["text_config", "language_config", "llm_config", "thinker_config.text_config"];

/**
 * Finds the family by `model_type`, that of the nested language model of a multimodal one first. Tensor names never
 * override a stated `model_type`, because families of equal names route differently.
 * @returns all candidates when the config has no `model_type`; else the one
 * @throws COPPICE_FAMILY_UNKNOWN
 */
export function findCandidates(root: ConfigReader, tensors: ReadonlyMap<string, TensorRef>): Candidate[] {
  const modelType = root.string("model_type");
  for (const path of textConfigs) {
    const config = root.object(path);
    if (!config) continue;
    const nested = config.string("model_type") ?? modelType;
    const family = familyOf(nested);
    if (family) return [candidate(family, config, tensors, `${path}.`, modelType ?? showValue(nested))];
  }
  const family = familyOf(modelType);
  if (family) return [candidate(family, root, tensors, "")];
  if (modelType === undefined && root.get("num_hidden_layers")) {
    return families
      .filter(({ editOnly }) => editOnly === undefined)
      .map((one) => candidate(one, root, tensors, ""));
  }
  throw unknownFamily(root, tensors, modelType);
}

export function unknownFamily(
  root: ConfigReader,
  tensors: ReadonlyMap<string, TensorRef>,
  modelType: string | undefined,
): CoppiceError {
  const nested = textConfigs.flatMap((path) => root.get(`${path}.model_type`)?.value ?? []);
  const architectures = root.get("architectures")?.value;
  return new CoppiceError(
    "COPPICE_FAMILY_UNKNOWN",
    `no family description fits: model_type is ${showValue(modelType ?? null)}, ` +
      (nested.length > 0 ? `that of its language model ${showValue(nested[0])}, ` : "") +
      `architectures are ${showValue(architectures ?? null)}, tensors are such as ${samples(tensors)}; ` +
      `known are ${families.map(({ name }) => name).join(", ")}`,
    { details: { modelType: modelType ?? null, tensors: sampleNames(tensors) } },
  );
}

function familyOf(modelType: string | undefined): FamilyDescription | undefined {
  if (modelType === undefined) return undefined;
  return families.find(({ name, aliases }) => name === modelType || aliases?.includes(modelType));
}

function candidate(
  family: FamilyDescription,
  config: ConfigReader,
  tensors: ReadonlyMap<string, TensorRef>,
  prefix: string,
  wrapper?: string,
): Candidate {
  const present = (keys: readonly string[] | undefined) =>
    (keys ?? []).filter((key) => config.get(key)).map((key) => prefix + key);
  const { experts, topK, groups, groupsKept, capacity } = family.config;
  return {
    family,
    config,
    naming: findNaming(family, tensors),
    counts: {
      experts: present(experts),
      topK: present(topK),
      groups: present(groups),
      groupsKept: present(groupsKept),
      capacity: present(capacity),
    },
    ...(wrapper !== undefined && { wrapper }),
  };
}

/**
 * The layout of a layer's experts, which must be that of the layers before it.
 * @param before layout of the first layer with experts, and its index; absent for that layer itself
 * @throws COPPICE_FAMILY_UNSUPPORTED when the first layer has none, COPPICE_FORMAT_EXPERTS when layouts are mixed
 */
export function findLayout(
  { family, naming }: Candidate,
  layer: number,
  before: { readonly layout: ExpertLayout; readonly layer: number } | undefined,
  index: NameIndex,
): ExpertLayout {
  const [first, second] = layoutsAt(family.layouts, (pattern) => naming.name(pattern, layer), index);
  if (first && second) throw mixed(sampleOf(first, naming, layer), sampleOf(second, naming, layer), layer);
  if (first && before && first !== before.layout) {
    throw mixed(sampleOf(before.layout, naming, before.layer), sampleOf(first, naming, layer), layer);
  }
  const layout = first ?? before?.layout;
  if (layout) return layout;
  const [stock] = family.layouts as readonly [ExpertLayout];
  throw new CoppiceError(
    "COPPICE_FAMILY_UNSUPPORTED",
    `config.json says model_type "${family.name}", but the tensors fit no ${family.title} layout: ` +
      `they are such as ${samples(index.tensors)}; expected for example ` +
      `${naming.name(stock.router, layer)} and ${sampleOf(stock, naming, layer)}`,
    { details: { modelType: family.name, tensors: sampleNames(index.tensors) } },
  );
}

function mixed(one: string, other: string, layer: number): CoppiceError {
  return contradiction(
    `experts lie in two ways: some as in ${one}, some as in ${other}; a checkpoint has one layout`,
    { layer },
  );
}

function sampleOf(layout: ExpertLayout, naming: Naming, layer: number): string {
  return layout.kind === "separate"
    ? `${naming.name(layout.experts.down, layer, 0)}.weight`
    : naming.name(layout.down, layer);
}

function sampleNames(tensors: ReadonlyMap<string, TensorRef>): string[] {
  const names = [...tensors.keys()];
  const preferred = names.filter((name) => /expert|router|gate/.test(name)).slice(0, 2);
  return [...new Set([...preferred, ...names.slice(0, 3)])].slice(0, 4).map((name) => name.slice(0, 120));
}

function samples(tensors: ReadonlyMap<string, TensorRef>): string {
  return sampleNames(tensors).join(", ") || "none";
}

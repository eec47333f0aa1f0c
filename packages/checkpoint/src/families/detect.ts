import { CoppiceError, type TensorRef } from "@coppice/core";
import type { ConfigReader } from "../config.js";
import { type ExpertLayout, type FamilyDescription, tensorName } from "./family.js";
import { mixtral } from "./mixtral.js";
import { qwen3Moe } from "./qwen3-moe.js";

/** Every family that this release reads. */
export const families: readonly FamilyDescription[] = [mixtral, qwen3Moe];

export interface Detected {
  readonly family: FamilyDescription;
  readonly layout: ExpertLayout;
}

/**
 * Finds the family: the expert layout by tensor names alone, the family among those with such a layout by
 * `model_type`, and by tensor names when a config states none. Names alone never override a stated
 * `model_type`, because families of equal names route differently.
 * @throws COPPICE_FAMILY_UNKNOWN, COPPICE_FAMILY_UNSUPPORTED
 */
export function detectFamily(config: ConfigReader, tensors: ReadonlyMap<string, TensorRef>): Detected {
  const modelType = config.string("model_type");
  const matches = families.flatMap((family) => {
    const layout = findLayout(family, config, tensors);
    return layout ? [{ family, layout }] : [];
  });
  const stated = families.find((family) => family.name === modelType);
  if (stated) {
    const match = matches.find(({ family }) => family === stated);
    if (match) return match;
    throw new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      `config.json says model_type "${stated.name}", but no ${stated.title} layout has tensors such as ${samples(tensors)}; ` +
        `expected for example ${tensorName(stated.layouts[0]?.router ?? "", firstMoeLayer(stated, config))}`,
      { details: { modelType: stated.name, tensors: sampleNames(tensors) } },
    );
  }
  const complete = matches.filter(({ family }) => hasAllKinds(family, tensors));
  if (modelType === undefined && complete.length === 1) return complete[0] as Detected;
  const architectures = config.get("architectures")?.value;
  throw new CoppiceError(
    "COPPICE_FAMILY_UNKNOWN",
    `no family description fits: model_type is ${JSON.stringify(modelType ?? null)}, architectures are ` +
      `${JSON.stringify(architectures ?? null)?.slice(0, 200)}, tensors are such as ${samples(tensors)}; ` +
      `known are ${families.map(({ name }) => name).join(", ")}`,
    { details: { modelType: modelType ?? null, tensors: sampleNames(tensors) } },
  );
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
  const { isMoeLayer } = family;
  if (!isMoeLayer) return 0;
  const layers = Math.min(config.integer("num_hidden_layers", 0, 0), 10_000);
  for (let layer = 0; layer < layers; layer++) if (isMoeLayer(config, layer)) return layer;
  return 0;
}

/** True when the checkpoint has query norms exactly when the family does: what tells equal layouts apart. */
function hasAllKinds(family: FamilyDescription, tensors: ReadonlyMap<string, TensorRef>): boolean {
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

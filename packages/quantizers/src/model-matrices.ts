import type { AttentionSpec, LinearSpec, MlpSpec, MoeModel, TensorRef } from "@coppice/core";

/** What a matrix does in the model. */
export type MatrixRole =
  | "query"
  | "key"
  | "value"
  | "queryDown"
  | "kvDown"
  | "kvUp"
  | "output"
  | "gate"
  | "up"
  | "down"
  | "embedding"
  | "head";

/** A matrix of a model that can be quantized; routers are none. */
export interface ModelMatrix {
  readonly role: MatrixRole;
  readonly weight: TensorRef;
  /** Absent for the embedding and the head. */
  readonly layer?: number;
  /** Of a routed expert: its number. */
  readonly expert?: number;
  /** True for a shared expert. */
  readonly shared?: true;
  /** True for an embedding that is the head as well. */
  readonly tied?: true;
}

/** All matrices that can be quantized, layer by layer; a tied head is the embedding, which is listed once. */
export function modelMatrices(model: MoeModel): ModelMatrix[] {
  const { embedding, head, layers, tied } = model;
  const all: ModelMatrix[] = [{ role: "embedding", weight: embedding, ...(tied && { tied }) }];
  for (const { index, attention, feedForward } of layers) {
    for (const [role, { weight }] of attentionMatrices(attention)) all.push({ role, weight, layer: index });
    if (feedForward.kind === "dense") all.push(...mlpMatrices(feedForward.mlp, { layer: index }));
    if (feedForward.kind !== "moe") continue;
    for (const [expert, mlp] of feedForward.experts.entries()) {
      all.push(...mlpMatrices(mlp, { layer: index, expert }));
    }
    if (feedForward.shared) all.push(...mlpMatrices(feedForward.shared, { layer: index, shared: true }));
  }
  return tied ? all : [...all, { role: "head", weight: head }];
}

function attentionMatrices(attention: AttentionSpec): [MatrixRole, LinearSpec][] {
  if (attention.kind === "other") return [];
  const { query, output } = attention;
  if (attention.kind === "gqa") {
    const { key, value } = attention;
    return [
      ["query", query],
      ["key", key],
      ["value", value],
      ["output", output],
    ];
  }
  const { queryDown, kvDown, kvUp } = attention;
  return [
    ["query", query],
    ...(queryDown ? [["queryDown", queryDown] satisfies [MatrixRole, LinearSpec]] : []),
    ["kvDown", kvDown],
    ["kvUp", kvUp],
    ["output", output],
  ];
}

function mlpMatrices(
  { gate, up, down }: MlpSpec,
  place: Omit<ModelMatrix, "role" | "weight">,
): ModelMatrix[] {
  return [
    ...(gate ? [{ role: "gate" as const, weight: gate, ...place }] : []),
    { role: "up", weight: up, ...place },
    { role: "down", weight: down, ...place },
  ];
}

/** The module that a matrix belongs to, as config.json names it: the tensor's name without `.weight`. */
export function moduleOf({ weight }: Pick<ModelMatrix, "weight">): string {
  return weight.name.replace(/\.weight$/, "");
}

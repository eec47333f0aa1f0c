import {
  CoppiceError,
  type DecoderLayer,
  type GroupedQueryAttentionSpec,
  type MoeModel,
  type MoeSpec,
  type RotaryScaling,
} from "@coppice/core";

/** How llama.cpp computes a family: what its files cannot say is fixed in its code (src/models of llama.cpp). */
export interface Architecture {
  /** `general.architecture`, which is also the first part of the model's keys. */
  readonly name: "llama" | "qwen3moe" | "olmoe";
  /** Queries and keys rotate pairs of neighbours: rows of their projections are put in that order. */
  readonly rotatesNeighbours: boolean;
  /** The gate weights of the chosen experts are divided by their sum. */
  readonly normalizes: boolean;
  /** Key of the expert width besides `feed_forward_length`. */
  readonly hasExpertWidth: boolean;
  /** A file may lack the head, which is then the embedding. */
  readonly tiesHead: boolean;
}

const architectures: Readonly<Record<string, Architecture>> = {
  mixtral: {
    name: "llama",
    rotatesNeighbours: true,
    normalizes: true,
    hasExpertWidth: false,
    tiesHead: true,
  },
  qwen3_moe: {
    name: "qwen3moe",
    rotatesNeighbours: false,
    normalizes: true,
    hasExpertWidth: true,
    tiesHead: true,
  },
  olmoe: {
    name: "olmoe",
    rotatesNeighbours: false,
    normalizes: false,
    hasExpertWidth: false,
    tiesHead: false,
  },
};

export interface GgufLayer extends DecoderLayer {
  readonly attention: GroupedQueryAttentionSpec;
  readonly feedForward: MoeSpec;
}

/** A model that a GGUF file can hold. */
export interface GgufModel {
  readonly model: MoeModel;
  readonly architecture: Architecture;
  /** At least one; what the format says once is equal in all. */
  readonly layers: readonly [GgufLayer, ...GgufLayer[]];
}

/**
 * Checks that llama.cpp computes exactly this model from a file of its architecture.
 * @throws COPPICE_EXPORT_UNSUPPORTED with the first reason why it does not
 */
export function describeForGguf(model: MoeModel): GgufModel {
  const architecture = Object.hasOwn(architectures, model.family) ? architectures[model.family] : undefined;
  if (!architecture) {
    const known = Object.keys(architectures).join(", ");
    throw unsupported(`the family ${model.family} has no GGUF output; expected one of ${known}`);
  }
  if (model.editOnly !== undefined) throw unsupported(`the model cannot be read: ${model.editOnly}`);
  if (model.undescribed) {
    throw unsupported(
      `the checkpoint holds more than a language model: ${model.undescribed[0]?.name} and ${model.undescribed.length - 1} other tensors`,
    );
  }
  const layers = model.layers.map((layer) => checkLayer(layer, model, architecture));
  const ggufModel: GgufModel = { model, architecture, layers: layers as [GgufLayer, ...GgufLayer[]] };
  checkEqualLayers(ggufModel);
  return ggufModel;
}

function checkLayer(layer: DecoderLayer, model: MoeModel, architecture: Architecture): GgufLayer {
  const { index, attention, feedForward } = layer;
  const refuse = (what: string) => unsupported(`layer ${index} ${what}`);
  if (feedForward.kind !== "moe") throw refuse("has no experts; in the format every layer has some");
  if (attention.kind !== "gqa") throw refuse(`has attention of the kind ${attention.kind}`);
  const { router } = feedForward;
  if (router.skip) throw refuse("skips experts for some tokens, which Coppice alone computes");
  if ((router.normalize !== undefined) !== architecture.normalizes) {
    throw refuse(
      architecture.normalizes
        ? "does not divide gate weights by their sum (norm_topk_prob is false); the format's architecture always does"
        : "divides gate weights by their sum (norm_topk_prob is true); the format's architecture never does",
    );
  }
  const { query, key, value, output, clip, rotary, heads, kvHeads, headDim } = attention;
  if (query.bias || key.bias || value.bias || output.bias) throw refuse("has biases of attention");
  if (clip !== undefined) throw refuse(`limits queries, keys and values to ±${clip}`);
  if (rotary?.scaling) checkScaling(rotary.scaling);
  if (architecture.name === "olmoe" && (kvHeads !== heads || heads * headDim !== model.hiddenSize)) {
    throw refuse(
      `has ${heads} query heads, ${kvHeads} key heads and head size ${headDim}; for ${architecture.name} both products must be the hidden size, ${model.hiddenSize}`,
    );
  }
  return { ...layer, attention, feedForward };
}

/** Stretched rotary embeddings that the format describes; llama.cpp takes what YaRN leaves open to be as in its paper. */
function checkScaling(scaling: RotaryScaling): void {
  if (scaling.kind === "linear") return;
  if (scaling.kind !== "yarn") {
    throw unsupported(`rotary scaling ${scaling.kind} has no place in the format; expected linear or yarn`);
  }
  const { factor, attentionFactor, betaFast, betaSlow, truncate } = scaling;
  const natural = factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1;
  const check = (
    key: string,
    value: number | boolean,
    expected: number | boolean,
    equal = value === expected,
  ) => {
    if (!equal)
      throw unsupported(`rotary scaling yarn has ${key} ${value}; for the format it is ${expected}`);
  };
  check("attention_factor", attentionFactor, natural, Math.abs(attentionFactor - natural) < 1e-6);
  check("beta_fast", betaFast, 32);
  check("beta_slow", betaSlow, 1);
  check("truncate", truncate, true);
}

function checkEqualLayers({ layers, architecture }: GgufModel): void {
  const check = (what: string, key: string, of: (moe: MoeSpec) => number) => {
    const [first, ...others] = layers;
    const expected = of(first.feedForward);
    const other = others.find(({ feedForward }) => of(feedForward) !== expected);
    if (!other) return;
    throw unsupported(
      `layer ${first.index} has ${what} ${expected}, layer ${other.index} ${of(other.feedForward)}; ${architecture.name}.${key} of the format is one number for all layers`,
      "keep equally many experts in every layer",
    );
  };
  check("expert count", "expert_count", ({ experts }) => experts.length);
  check("top-k", "expert_used_count", ({ router }) => router.topK);
  const widths = layers.flatMap(({ index, feedForward }) =>
    feedForward.experts.map(({ width }, expert) => ({ index, expert, width })),
  );
  const uneven = widths.find(({ width }) => width !== widths[0]?.width);
  if (uneven) {
    throw unsupported(
      `expert ${uneven.expert} of layer ${uneven.index} has ${uneven.width} hidden units, others ${widths[0]?.width}; the format stacks experts of one width`,
    );
  }
}

export function unsupported(message: string, hint?: string): CoppiceError {
  return new CoppiceError(
    "COPPICE_EXPORT_UNSUPPORTED",
    `GGUF: ${message}`,
    hint === undefined ? {} : { hint },
  );
}

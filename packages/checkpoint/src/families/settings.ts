import type { ConfigReader } from "../config.js";
import type { FamilyDescription } from "./family.js";

/** What a config says about the language model as a whole, checked. */
export interface Settings {
  readonly hiddenSize: number;
  readonly vocabSize: number;
  readonly contextLength: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly epsilon: number;
  readonly tied: boolean;
  readonly endTokens: readonly number[];
  readonly beginToken: number | undefined;
}

/** @throws COPPICE_FORMAT_CONFIG, COPPICE_FAMILY_UNSUPPORTED */
export function readSettings(
  family: FamilyDescription,
  config: ConfigReader,
  root: ConfigReader,
  generation: ConfigReader,
): Settings {
  const { defaults, hiddenSize: hiddenKeys, contextLength: contextKeys } = family.config;
  const hiddenSize = config.integer(hiddenKeys ?? "hidden_size");
  const isRun = family.editOnly === undefined;
  if (isRun) {
    const activation = config.string("hidden_act") ?? "silu";
    if (activation !== "silu") throw config.unsupported(family.title, "hidden_act", activation, '"silu"');
  }
  const heads = isRun ? config.integer("num_attention_heads") : 1;
  const kvHeads = isRun ? readKvHeads(config, heads, defaults.kvHeads) : 1;
  const fromGeneration = generation.integers("eos_token_id");
  const tokenIds = (key: string) => (config.get(key) ? config.integers(key) : root.integers(key));
  const begin = tokenIds("bos_token_id");
  return {
    hiddenSize,
    vocabSize: config.integer("vocab_size"),
    contextLength: config.integer(contextKeys ?? "max_position_embeddings", defaults.contextLength),
    layers: family.layerCount?.(config) ?? config.integer("num_hidden_layers"),
    heads,
    kvHeads,
    headDim:
      isRun && family.attention.kind === "gqa" ? readHeadDim(config, hiddenSize, heads, defaults.headDim) : 1,
    epsilon: config.positive(["rms_norm_eps", "layer_norm_epsilon"], defaults.epsilon),
    tied: readTied(config, root, defaults.tied ?? false),
    // generation_config.json decides when text ends; config.json stands in where it says nothing.
    endTokens: fromGeneration.length > 0 ? fromGeneration : tokenIds("eos_token_id"),
    beginToken: begin[0],
  };
}

/**
 * Around a language model, either config may say so: transformers 5 asks the one of the class that has the head, and
 * writes the other's default beside it.
 */
function readTied(config: ConfigReader, root: ConfigReader, fallback: boolean): boolean {
  const key = "tie_word_embeddings";
  const stated = [config, root].filter((one) => one.get(key)).map((one) => one.boolean(key, fallback));
  return stated.length > 0 ? stated.includes(true) : fallback;
}

function readKvHeads(config: ConfigReader, heads: number, fallback: number | undefined): number {
  const key = "num_key_value_heads";
  const kvHeads = config.isNull(key) ? heads : config.integer(key, fallback ?? heads);
  if (heads % kvHeads !== 0) {
    throw config.invalid(key, kvHeads, `a divisor of num_attention_heads, ${heads}`);
  }
  return kvHeads;
}

function readHeadDim(
  config: ConfigReader,
  hiddenSize: number,
  heads: number,
  fallback: number | undefined,
): number {
  const natural = config.isNull("head_dim") ? undefined : fallback;
  if (natural === undefined && !config.get("head_dim") && hiddenSize % heads !== 0) {
    throw config.invalid(
      "hidden_size",
      hiddenSize,
      `a multiple of num_attention_heads, ${heads}, or head_dim`,
    );
  }
  const headDim = config.integer("head_dim", natural ?? hiddenSize / heads);
  if (headDim % 2 !== 0) {
    throw config.invalid("head_dim", headDim, "an even number, because positions rotate pairs");
  }
  return headDim;
}

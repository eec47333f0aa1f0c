import { CoppiceError } from "@coppice/core";
import type { ConfigReader } from "../config.js";
import { showValue } from "../json-object.js";
import type { FamilyDescription } from "./family.js";

/** What a config says about the computation, checked. */
export interface Settings {
  readonly hiddenSize: number;
  readonly vocabSize: number;
  readonly contextLength: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly attentionBias: boolean;
  readonly slidingWindow: number | undefined;
  readonly theta: number;
  readonly epsilon: number;
  readonly experts: number;
  readonly expertWidth: number;
  readonly topK: number;
  readonly normalize: boolean;
  readonly tied: boolean;
  readonly endTokens: readonly number[];
  readonly beginToken: number | undefined;
}

/** @throws COPPICE_FORMAT_CONFIG, COPPICE_FAMILY_UNSUPPORTED */
export function readSettings(
  family: FamilyDescription,
  config: ConfigReader,
  generation: ConfigReader,
): Settings {
  const { defaults } = family.config;
  const activation = config.string("hidden_act") ?? "silu";
  if (activation !== "silu") throw unsupported(family, "hidden_act", activation, '"silu"');
  const quantization = config.object("quantization_config");
  if (quantization) {
    const method = quantization.get("quant_method")?.value;
    throw unsupported(
      family,
      "quantization_config.quant_method",
      method,
      "none (give the unquantized original)",
    );
  }
  const hiddenSize = config.integer("hidden_size");
  const heads = config.integer("num_attention_heads");
  const kvHeads = config.integer("num_key_value_heads", heads);
  if (heads % kvHeads !== 0) {
    throw config.invalid("num_key_value_heads", kvHeads, `a divisor of num_attention_heads, ${heads}`);
  }
  const experts = config.integer(family.config.experts);
  const topK = config.integer(family.config.topK);
  if (topK > experts) {
    throw config.invalid(family.config.topK[0] as string, topK, `at most the number of experts, ${experts}`);
  }
  const { normalize } = family.router;
  const fromGeneration = generation.integers("eos_token_id");
  const begin = config.integers("bos_token_id");
  return {
    hiddenSize,
    vocabSize: config.integer("vocab_size"),
    contextLength: config.integer("max_position_embeddings", defaults.contextLength),
    layers: config.integer("num_hidden_layers"),
    heads,
    kvHeads,
    headDim: readHeadDim(config, hiddenSize, heads),
    attentionBias: family.attentionBias !== undefined && config.boolean(family.attentionBias, false),
    slidingWindow: family.slidingWindow(config),
    theta: readTheta(family, config),
    epsilon: config.positive("rms_norm_eps", defaults.epsilon),
    experts,
    expertWidth: config.integer(family.config.expertWidth),
    topK,
    normalize: normalize === true || config.boolean(normalize.key, normalize.fallback),
    tied: config.boolean("tie_word_embeddings", false),
    // generation_config.json decides when text ends; config.json stands in where it says nothing.
    endTokens: fromGeneration.length > 0 ? fromGeneration : config.integers("eos_token_id"),
    beginToken: begin[0],
  };
}

function readHeadDim(config: ConfigReader, hiddenSize: number, heads: number): number {
  if (!config.get("head_dim") && hiddenSize % heads !== 0) {
    throw config.invalid(
      "hidden_size",
      hiddenSize,
      `a multiple of num_attention_heads, ${heads}, or head_dim`,
    );
  }
  const headDim = config.integer("head_dim", hiddenSize / heads);
  if (headDim % 2 !== 0)
    throw config.invalid("head_dim", headDim, "an even number, because positions rotate pairs");
  return headDim;
}

/**
 * Base of the rotary frequencies: `rope_parameters.rope_theta` as transformers 5 writes it, else the older
 * `rope_theta` beside `rope_scaling`.
 */
function readTheta(family: FamilyDescription, config: ConfigReader): number {
  const parameters = config.object("rope_parameters");
  const scaling = config.object("rope_scaling");
  for (const [name, rope] of [["rope_parameters", parameters] as const, ["rope_scaling", scaling] as const]) {
    const kind = rope?.get(["rope_type", "type"]);
    if (kind && kind.value !== "default") {
      throw unsupported(family, `${name}.${kind.key}`, kind.value, '"default"');
    }
    const partial = rope?.get("partial_rotary_factor")?.value ?? 1;
    if (partial !== 1) throw unsupported(family, `${name}.partial_rotary_factor`, partial, "1");
  }
  const fallback = config.positive("rope_theta", family.config.defaults.theta);
  return parameters?.positive("rope_theta", fallback) ?? fallback;
}

function unsupported(family: FamilyDescription, key: string, value: unknown, expected: string): CoppiceError {
  return new CoppiceError(
    "COPPICE_FAMILY_UNSUPPORTED",
    `config.json: ${key} is ${showValue(value)}; for ${family.title} only ${expected} is supported`,
    { details: { family: family.name, key, value: showValue(value) } },
  );
}

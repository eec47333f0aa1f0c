import type { JsonObject, LoadedCheckpoint } from "@coppice/checkpoint";
import type { GraphFiles } from "./graph-files.js";

/**
 * Model types that transformers.js 4 loads as decoders with a cache of keys and values per layer, among those of the
 * families. It does not know the others; what it would do for them is what it does for `llama`: the graph says the rest.
 */
const knownTypes = new Set(["qwen2_moe", "qwen3_moe", "gpt_oss", "llama4_text"]);

/**
 * What transformers.js refuses to load: it keeps one cache of all tokens per layer, and a graph whose heads keep different spans
 * has others.
 */
const spanType = "coppice_spans";

/** The types of weights that transformers.js names, and how the files of such graphs end. */
export const weightTypes = { fp32: "", q8: "_quantized", q4: "_q4", q2: "_q2" } as const;
export type WeightType = keyof typeof weightTypes;

/**
 * config.json of an exported folder: that of the checkpoint, with what transformers.js and other clients look for under
 * the names of Llama. What the weights were stored as does not hold any more.
 */
export function exportConfig(
  { config, detected, model }: Pick<LoadedCheckpoint, "config" | "detected" | "model">,
  { type, graphFile, files, positions, spans, sparesPresent }: GraphFiles,
): JsonObject {
  const inner = detected.wrapper === undefined ? undefined : (config[detected.wrapper] as JsonObject);
  const { quantization_config: _, compression_config: __, ...rest } = { ...config, ...inner };
  const modelType = typeof rest["model_type"] === "string" ? rest["model_type"] : model.family;
  const [first] = model.layers;
  const attention = first?.attention;
  return {
    ...rest,
    model_type: spans ? spanType : knownTypes.has(modelType) ? modelType : "llama",
    // transformers.js looks for a vision tower by this name.
    architectures: names(rest["architectures"]).map((name) =>
      name.replace(/ForConditionalGeneration$/, "ForCausalLM"),
    ),
    num_hidden_layers: model.layers.length,
    hidden_size: model.hiddenSize,
    vocab_size: model.vocabSize,
    max_position_embeddings: positions,
    ...(attention && attention.kind !== "other" && { num_attention_heads: attention.heads }),
    ...(attention?.kind === "gqa" && {
      num_key_value_heads: attention.kvHeads,
      head_dim: attention.headDim,
    }),
    eos_token_id: tokenIds(model.endTokens),
    "transformers.js_config": {
      dtype: type,
      // All but the graph itself.
      use_external_data_format: { [graphFile]: files.length - 1 },
    },
    coppice_export: {
      family: model.family,
      model_type: modelType,
      // What a caller has to know before it asks for it.
      ...(sparesPresent && { spares_present: true }),
      ...(spans && {
        attention: { length: spans.length, density: spans.density, spans: spans.layout.spans },
      }),
    },
  };
}

function names(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((name) => typeof name === "string") : [];
}

/** One id, or several as a list. */
export function tokenIds(ids: readonly number[]): number | readonly number[] | null {
  return ids.length > 1 ? ids : (ids[0] ?? null);
}

import type { RouterGroups } from "@coppice/core";
import type { ConfigReader } from "../config.js";
import type { Flag, RouterSettings } from "./family.js";

/** Biases of attention, which most families leave to the config and most configs turn off. */
export const attentionBias: Flag = { key: "attention_bias", fallback: false };

/** Qwen: every `decoder_sparse_step`-th layer has experts, but for those of `mlp_only_layers`. */
export function qwenMoeLayers(config: ConfigReader): (layer: number) => boolean {
  const dense = new Set(config.integers("mlp_only_layers"));
  const step = config.integer("decoder_sparse_step", 1);
  return (layer) => !dense.has(layer) && (layer + 1) % step === 0;
}

/**
 * DeepSeek and its heirs: the choice is limited to the best `topk_group` of `n_group` groups; undefined when those are all.
 * @throws COPPICE_FORMAT_CONFIG when a token may use more groups than there are
 */
export function expertGroups(
  config: ConfigReader,
  score: RouterGroups["score"],
  defaults?: { readonly groups: number; readonly kept: number },
): RouterGroups | undefined {
  const count = config.integer("n_group", defaults?.groups);
  const keep = config.integer("topk_group", defaults?.kept);
  if (keep > count) throw config.invalid("topk_group", keep, `at most the number of groups, ${count}`);
  return keep < count ? { count, keep, score } : undefined;
}

/** The gate weights of the chosen are always divided by their sum. */
export const normalizeAlways = (): RouterSettings => ({ normalize: { power: 1 } });

/** They are divided when `norm_topk_prob` says so. */
export function normalizeByKey(fallback: boolean): (config: ConfigReader) => RouterSettings {
  return (config) => (config.boolean("norm_topk_prob", fallback) ? { normalize: { power: 1 } } : {});
}

/** DeepSeek and GLM: the first `first_k_dense_replace` layers are dense. */
export function denseFirst(fallback: number): (config: ConfigReader) => (layer: number) => boolean {
  return (config) => {
    const first = config.integer("first_k_dense_replace", fallback, 0);
    return (layer) => layer >= first;
  };
}

/** As wide as several routed experts: `n_shared_experts` times `moe_intermediate_size` (DeepSeek, GLM). */
export function sharedExpertsWidth(fallback: number): (config: ConfigReader) => number {
  return (config) =>
    config.integer("moe_intermediate_size") * config.integer("n_shared_experts", fallback, 0);
}

/** All layers have the window of `sliding_window`, if that is set (Mixtral, Phi-3.5-MoE). */
export function slidingWindow(config: ConfigReader): () => { slidingWindow?: number } {
  const window = config.get("sliding_window") ? config.integer("sliding_window") : undefined;
  return () => (window === undefined ? {} : { slidingWindow: window });
}

/** The window of layers that `layer_types` calls sliding. */
export function slidingLayers(
  types: readonly string[] | undefined,
  fallback: (layer: number) => boolean,
  window: () => number,
): (layer: number) => { slidingWindow?: number } {
  return (layer) => {
    const slides = types ? types[layer] === "sliding_attention" : fallback(layer);
    return slides ? { slidingWindow: window() } : {};
  };
}

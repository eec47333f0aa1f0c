import type { ConfigReader } from "../config.js";
import type { RouterSettings } from "./family.js";

/** Qwen: every `decoder_sparse_step`-th layer has experts, but for those of `mlp_only_layers`. */
export function qwenMoeLayers(config: ConfigReader): (layer: number) => boolean {
  const dense = new Set(config.integers("mlp_only_layers"));
  const step = config.integer("decoder_sparse_step", 1);
  return (layer) => !dense.has(layer) && (layer + 1) % step === 0;
}

/** The chosen are divided by their sum when `norm_topk_prob` says so. */
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

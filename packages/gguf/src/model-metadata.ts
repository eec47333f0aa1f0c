import type { JsonObject } from "@coppice/checkpoint";
import type { MlpSpec } from "@coppice/core";
import type { GgufModel } from "./architecture.js";
import type { GgufValue } from "./header.js";

/** What a whole file is called that holds mostly tensors of one type (`llama_ftype` of llama.h). */
const fileTypes = { F16: 1, Q4_0: 2, Q8_0: 7 } as const;

/** The type that most tensors of a file have. */
export type GgufFileType = keyof typeof fileTypes;

/**
 * Keys that describe the model, with the names of llama.cpp's converter (`set_gguf_parameters`).
 * @param name `general.name`
 */
export function modelMetadata(
  { model, architecture, layers }: GgufModel,
  config: JsonObject,
  type: GgufFileType,
  name: string,
): [key: string, value: GgufValue][] {
  const [{ attention, attentionNorm, feedForward }] = layers;
  const { heads, kvHeads, headDim, rotary, slidingWindow } = attention;
  const [{ width }] = feedForward.experts as readonly [MlpSpec];
  const entries: [string, GgufValue][] = [];
  const own = (key: string, kind: "uint32" | "float32", value: number) =>
    entries.push([`${architecture.name}.${key}`, { type: kind, value }]);
  const text = (key: string, value: string) => entries.push([key, { type: "string", value }]);
  text("general.architecture", architecture.name);
  text("general.type", "model");
  text("general.name", name);
  own("block_count", "uint32", layers.length);
  // A window is not in the format; up to its length attention is the same.
  own("context_length", "uint32", Math.min(model.contextLength, slidingWindow ?? model.contextLength));
  own("embedding_length", "uint32", model.hiddenSize);
  const denseWidth = config.intermediate_size;
  own("feed_forward_length", "uint32", typeof denseWidth === "number" ? denseWidth : width);
  own("attention.head_count", "uint32", heads);
  own("attention.head_count_kv", "uint32", kvHeads);
  if (rotary) own("rope.freq_base", "float32", rotary.theta);
  own("attention.layer_norm_rms_epsilon", "float32", attentionNorm.epsilon);
  own("expert_count", "uint32", feedForward.experts.length);
  own("expert_used_count", "uint32", feedForward.router.topK);
  if (architecture.hasExpertWidth) own("expert_feed_forward_length", "uint32", width);
  own("attention.key_length", "uint32", headDim);
  own("attention.value_length", "uint32", headDim);
  own("rope.dimension_count", "uint32", headDim);
  own("vocab_size", "uint32", model.vocabSize);
  const scaling = rotary?.scaling;
  if (scaling?.kind === "linear" || scaling?.kind === "yarn") {
    text(`${architecture.name}.rope.scaling.type`, scaling.kind);
    own("rope.scaling.factor", "float32", scaling.factor);
  }
  if (scaling?.kind === "yarn")
    own("rope.scaling.original_context_length", "uint32", scaling.originalContext);
  entries.push(["general.file_type", { type: "uint32", value: fileTypes[type] }]);
  entries.push(["general.quantization_version", { type: "uint32", value: 2 }]);
  return entries;
}

import type { RotaryScaling, RotarySpec } from "@coppice/core";
import { ConfigReader } from "../config.js";

/** What a family fixes about its rotary embedding. */
export interface RotaryContext {
  /** For messages. */
  readonly title: string;
  readonly theta: number;
  readonly contextLength: number;
  /** Dimensions that rotate when the factor is 1. */
  readonly headDim: number;
  readonly interleaved: boolean;
  /** The part of each head that rotates by default; absent: all of it, whatever the config says. */
  readonly partial?: number | undefined;
  /** True: a longrope config states its factors on cos and sin, and its short divisors hold at every length. */
  readonly statedMagnitudes?: boolean;
  /** `rope_parameters` of a config without any. */
  readonly fallback?: Readonly<Record<string, unknown>> | undefined;
}

export interface RotarySettings {
  readonly rotary: RotarySpec;
  /** Factor on q·k that comes with YaRN in latent attention (DeepSeek `mscale_all_dim`). */
  readonly softmaxFactor: number;
}

/**
 * Reads the rotary embedding by the rules of Hugging Face transformers 5 (`standardize_rope_params` and the functions
 * below it in `modeling_rope_utils.py`): `rope_scaling`, the older name, goes before `rope_parameters`; what these do
 * not say is taken from the config's top level; `original_max_position_embeddings` of the top level goes before theirs.
 * @throws COPPICE_FORMAT_CONFIG, COPPICE_FAMILY_UNSUPPORTED
 */
export function readRotary(config: ConfigReader, context: RotaryContext): RotarySettings {
  const { title, contextLength, headDim, interleaved, fallback } = context;
  const older = config.object("rope_scaling");
  const isOlder = older !== undefined && older.keys().length > 0;
  const stated = isOlder ? older : config.object("rope_parameters");
  const empty = !stated || stated.keys().length === 0;
  const rope = empty && fallback ? new ConfigReader(fallback, "config.json") : stated;
  const nested = rope?.keys().find((key) => key.endsWith("_attention"));
  if (nested) throw config.unsupported(title, "rope_parameters", { [nested]: {} }, "one set for all layers");
  const theta = rope?.get("rope_theta")
    ? rope.positive("rope_theta")
    : config.positive("rope_theta", context.theta);
  const partial = readPartial(config, rope, context);
  const dimensions = Math.trunc(headDim * partial);
  if (dimensions < 2 || dimensions % 2 !== 0) {
    throw config.invalid(
      partial === 1 ? "head_dim" : "partial_rotary_factor",
      partial === 1 ? headDim : partial,
      "one that gives an even number of dimensions that rotate, because positions rotate pairs",
    );
  }
  const key = rope?.get("rope_type") ? "rope_type" : "type";
  const kind = rope?.string(key) ?? "default";
  const plain = { rotary: { theta, dimensions, interleaved }, softmaxFactor: 1 };
  // Multimodal sections rotate by three positions, which are equal for text.
  if (!rope || kind === "default" || kind === "mrope") return plain;
  if (kind === "dynamic" && rope.get("alpha")) {
    // HunYuan: the base is stretched once, by alpha, whatever the length.
    const stretched = theta * rope.positive("alpha") ** (dimensions / (dimensions - 2));
    return { ...plain, rotary: { ...plain.rotary, theta: stretched } };
  }
  const originalContext = config.get("original_max_position_embeddings")
    ? config.integer("original_max_position_embeddings")
    : rope.integer("original_max_position_embeddings", contextLength);
  const scaling = !context.statedMagnitudes
    ? readScaling(kind, rope, { dimensions, contextLength, originalContext })
    : kind === "longrope"
      ? readStated(rope, dimensions, originalContext)
      : undefined;
  if (!scaling) {
    const known = context.statedMagnitudes
      ? "default or longrope"
      : "default, linear, dynamic, yarn, llama3 or longrope";
    throw config.unsupported(title, `${isOlder ? "rope_scaling" : "rope_parameters"}.${key}`, kind, known);
  }
  const all = rope.get("mscale_all_dim") ? rope.number("mscale_all_dim") : 0;
  const softmaxFactor = all === 0 ? 1 : magnitude(rope.positive("factor"), all) ** 2;
  return { rotary: { ...plain.rotary, scaling }, softmaxFactor };
}

function readPartial(config: ConfigReader, rope: ConfigReader | undefined, context: RotaryContext): number {
  const key = "partial_rotary_factor";
  const inside = rope?.get(key) !== undefined;
  const stated = inside ? rope.positive(key) : config.get(key) ? config.positive(key) : undefined;
  if (context.partial !== undefined) {
    // MiniMax-M2's own config states the dimensions.
    const own = config.get("rotary_dim") ? config.integer("rotary_dim") / context.headDim : undefined;
    return stated ?? own ?? context.partial;
  }
  if (stated !== undefined && stated !== 1) throw config.unsupported(context.title, key, stated, "1");
  return 1;
}

function readScaling(
  kind: string,
  rope: ConfigReader,
  sizes: { dimensions: number; contextLength: number; originalContext: number },
): RotaryScaling | undefined {
  const { dimensions, contextLength, originalContext } = sizes;
  const ratio = () => (rope.get("factor") ? rope.positive("factor") : contextLength / originalContext);
  switch (kind) {
    case "linear":
      return { kind, factor: rope.positive("factor") };
    case "dynamic":
      return { kind, factor: rope.positive("factor"), originalContext: contextLength };
    case "llama3":
      return {
        kind,
        factor: rope.positive("factor"),
        lowFrequencyFactor: rope.positive("low_freq_factor"),
        highFrequencyFactor: rope.positive("high_freq_factor"),
        originalContext,
      };
    case "yarn": {
      const factor = ratio();
      return {
        kind,
        factor,
        originalContext,
        // Zero and null mean the default there.
        betaFast: rope.number("beta_fast", 32) || 32,
        betaSlow: rope.number("beta_slow", 1) || 1,
        attentionFactor: yarnFactor(rope, factor),
        truncate: rope.boolean("truncate", true),
      };
    }
    case "longrope": {
      const shortFactors = rope.positives("short_factor", dimensions / 2);
      const longFactors = rope.positives("long_factor", dimensions / 2);
      const factor = ratio();
      const natural = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalContext));
      const attentionFactor = rope.positive("attention_factor", natural);
      return { kind, shortFactors, longFactors, originalContext, attentionFactor };
    }
    default:
      return undefined;
  }
}

function readStated(rope: ConfigReader, dimensions: number, originalContext: number): RotaryScaling {
  const shortFactors = rope.positives("short_factor", dimensions / 2);
  return {
    kind: "longrope",
    shortFactors,
    longFactors: shortFactors,
    originalContext,
    attentionFactor: rope.positive("short_mscale"),
    longAttentionFactor: rope.positive("long_mscale"),
  };
}

function yarnFactor(rope: ConfigReader, factor: number): number {
  if (rope.get("attention_factor")) return rope.positive("attention_factor");
  const one = rope.number("mscale", 0);
  const all = rope.number("mscale_all_dim", 0);
  return one !== 0 && all !== 0 ? magnitude(factor, one) / magnitude(factor, all) : magnitude(factor, 1);
}

/** Growth of attention logits with the stretch (YaRN, arXiv 2309.00071, equation 22). */
function magnitude(factor: number, weight: number): number {
  return factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1;
}

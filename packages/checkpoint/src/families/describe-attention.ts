import type {
  AttentionSpec,
  GroupedQueryAttentionSpec,
  HeadNormSpec,
  LatentAttentionSpec,
  LinearSpec,
  NormSpec,
} from "@coppice/core";
import type { ConfigReader } from "../config.js";
import { type FamilyDescription, flag, type GroupedAttention, type LatentAttention } from "./family.js";
import { readRotary } from "./rotary-settings.js";
import type { Settings } from "./settings.js";
import type { TensorTaker } from "./tensor-taker.js";

/** What the description of any part of a model is made from. */
export interface Description {
  readonly family: FamilyDescription;
  readonly config: ConfigReader;
  readonly settings: Settings;
  readonly take: TensorTaker;
}

/** Norms within latent attention: the class default of the reference, whatever the config says. */
const latentEpsilon = 1e-6;

/** @returns the attention of each layer, its settings read once */
export function describeAttention(description: Description): (layer: number) => AttentionSpec {
  const { attention } = description.family;
  if (attention.kind === "other") return () => ({ kind: "other", name: attention.name });
  return attention.kind === "gqa"
    ? describeGrouped(description, attention)
    : describeLatent(description, attention);
}

function describeGrouped(
  { family, config, settings, take }: Description,
  attention: GroupedAttention,
): (layer: number) => GroupedQueryAttentionSpec {
  const { heads, kvHeads, headDim, hiddenSize, epsilon } = settings;
  const { norms } = attention;
  const bias = flag(config, attention.bias);
  const outputBias = flag(config, attention.outputBias);
  const hasNorms = norms !== undefined && flag(config, norms.when ?? true);
  const clip =
    attention.clip !== undefined && config.get(attention.clip) ? config.positive(attention.clip) : undefined;
  const scale = attention.scale?.(config) ?? headDim ** -0.5;
  const perLayer = attention.perLayer?.(config);
  const { rotary } = readRotary(config, {
    title: family.title,
    theta: family.config.defaults.theta,
    contextLength: settings.contextLength,
    headDim,
    interleaved: attention.interleaved === true,
    partial: attention.partialRotary,
    statedMagnitudes: attention.statedMagnitudes === true,
    fallback: family.config.defaults.rotary,
  });
  const over = norms?.over ?? "head";
  return (layer) => {
    const linear = (name: string, rows: number, columns: number, hasBias: boolean) =>
      takeLinear(take, take.name(`${attentionBase}${name}`, layer), rows, columns, hasBias);
    const norm = (name: string, count: number): HeadNormSpec => ({
      kind: "rms",
      over,
      weight: take.tensor(take.name(`${attentionBase}${name}.weight`, layer), [
        over === "head" ? headDim : count * headDim,
      ]),
      epsilon,
    });
    const own = perLayer?.(layer) ?? {};
    const plainNorm: HeadNormSpec | undefined = own.plainNorm
      ? { kind: "rms", over: "head", epsilon }
      : undefined;
    const queryNorm = hasNorms ? norm(norms.query, heads) : plainNorm;
    const keyNorm = hasNorms ? norm(norms.key, kvHeads) : plainNorm;
    return {
      kind: "gqa",
      heads,
      kvHeads,
      headDim,
      scale,
      query: linear("q_proj", heads * headDim, hiddenSize, bias),
      key: linear("k_proj", kvHeads * headDim, hiddenSize, bias),
      value: linear("v_proj", kvHeads * headDim, hiddenSize, bias),
      output: linear("o_proj", hiddenSize, heads * headDim, outputBias),
      ...(queryNorm && { queryNorm }),
      ...(keyNorm && { keyNorm }),
      ...(attention.normAfterRotary && queryNorm && { normAfterRotary: true }),
      ...(clip !== undefined && { clip }),
      ...(own.rotates !== false && { rotary }),
      ...(attention.sinks && {
        sinks: take.tensor(take.name(`${attentionBase}${attention.sinks}`, layer), [heads]),
      }),
      ...(own.slidingWindow !== undefined && { slidingWindow: own.slidingWindow }),
      ...(own.chunk !== undefined && { chunk: own.chunk }),
      ...(own.temperature && { temperature: own.temperature }),
    };
  };
}

/** Names of attention are the same in all families that are executed. */
const attentionBase = "model.layers.{l}.self_attn.";

function describeLatent(
  { family, config, settings, take }: Description,
  attention: LatentAttention,
): (layer: number) => LatentAttentionSpec {
  const { heads, hiddenSize } = settings;
  const rank = config.integer("kv_lora_rank", 512);
  const queryRank = config.isNull("q_lora_rank") ? undefined : config.integer("q_lora_rank", 1536);
  const rotaryDim = config.integer("qk_rope_head_dim", 64);
  const nopeDim = config.integer("qk_nope_head_dim", 128);
  const valueDim = config.integer("v_head_dim", 128);
  const bias = flag(config, attention.bias);
  const { rotary, softmaxFactor } = readRotary(config, {
    title: family.title,
    theta: family.config.defaults.theta,
    contextLength: settings.contextLength,
    headDim: rotaryDim,
    interleaved: flag(config, attention.interleaved),
  });
  return (layer) => {
    const linear = (name: string, rows: number, columns: number, hasBias: boolean) =>
      takeLinear(take, take.name(`${attentionBase}${name}`, layer), rows, columns, hasBias);
    const norm = (name: string, size: number): NormSpec => ({
      kind: "rms",
      weight: take.tensor(take.name(`${attentionBase}${name}.weight`, layer), [size]),
      epsilon: latentEpsilon,
    });
    const queryRows = heads * (nopeDim + rotaryDim);
    return {
      kind: "mla",
      heads,
      scale: (nopeDim + rotaryDim) ** -0.5 * softmaxFactor,
      nopeDim,
      valueDim,
      rank,
      ...(queryRank === undefined
        ? { query: linear("q_proj", queryRows, hiddenSize, false) }
        : {
            queryDown: linear("q_a_proj", queryRank, hiddenSize, bias),
            queryNorm: norm("q_a_layernorm", queryRank),
            query: linear("q_b_proj", queryRows, queryRank, false),
          }),
      kvDown: linear("kv_a_proj_with_mqa", rank + rotaryDim, hiddenSize, bias),
      kvNorm: norm("kv_a_layernorm", rank),
      kvUp: linear("kv_b_proj", heads * (nopeDim + valueDim), rank, false),
      output: linear("o_proj", hiddenSize, heads * valueDim, bias),
      rotary,
    };
  };
}

export function takeLinear(
  take: TensorTaker,
  base: string,
  rows: number,
  columns: number,
  hasBias: boolean,
): LinearSpec {
  return {
    weight: take.weight(base, [rows, columns]),
    ...(hasBias && { bias: take.tensor(`${base}.bias`, [rows]) }),
  };
}

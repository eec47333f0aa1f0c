import type {
  DecoderLayer,
  GroupedQueryAttentionSpec,
  HeadNormSpec,
  LatentAttentionSpec,
  LinearSpec,
  MoeModel,
} from "@coppice/core";
import { attentionShape, type HeadLayout, headLayout, latentLayouts, layHeads, layNorm } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import type { Feeds } from "./sessions.js";
import type { TensorSource } from "./weights.js";

/** The inputs of a layer's attention graph that are weights, but for the router, with heads laid out. */
export async function attentionFeeds(
  source: TensorSource,
  { hiddenSize, residualScale = 1 }: MoeModel,
  layer: DecoderLayer,
): Promise<Feeds> {
  const { attention, attentionNorm, feedForwardNorm } = layer;
  const shape = attentionShape(layer, hiddenSize);
  const norms = {
    ...(await source.norm("attentionNorm", attentionNorm, hiddenSize)),
    ...(await source.norm("feedForwardNorm", feedForwardNorm, hiddenSize)),
  };
  if (attention.kind === "gqa" && shape.kind === "gqa") {
    const layout = headLayout(attention, shape);
    return {
      ...norms,
      ...(await groupedQueryFeeds(source, attention, layout)),
      ...(await outputFeeds(source, attention.output, layout, residualScale)),
    };
  }
  if (attention.kind !== "mla") return norms;
  return {
    ...norms,
    ...(await latentFeeds(source, attention)),
    ...(await outputFeeds(source, attention.output, undefined, residualScale)),
  };
}

async function groupedQueryFeeds(
  source: TensorSource,
  attention: GroupedQueryAttentionSpec,
  layout: HeadLayout,
): Promise<Feeds> {
  const { query, key, value, queryNorm, keyNorm, sinks, heads, kvHeads } = attention;
  const { weight, bias, inputs } = await stacked(source, [query, key, value]);
  const all = heads + 2 * kvHeads;
  const headNorm = async (name: string, spec: HeadNormSpec, count: number) => {
    const size = attention.headDim * (spec.over === "head" ? 1 : count);
    const values = spec.weight ? await source.values(spec.weight) : new Float32Array(size).fill(1);
    return {
      [name]: tensorOf(source, layNorm(values, layout)),
      ...(spec.bias && {
        [`${name}Bias`]: tensorOf(source, layHeads(await source.values(spec.bias), layout, 1)),
      }),
    };
  };
  return {
    qkv: tensorOf(source, layHeads(weight, layout, inputs), all * layout.size),
    ...(bias && { qkvBias: tensorOf(source, layHeads(bias, layout, 1)) }),
    ...(queryNorm && (await headNorm("queryNorm", queryNorm, heads))),
    ...(keyNorm && (await headNorm("keyNorm", keyNorm, kvHeads))),
    ...(sinks && { sinks: tensorOf(source, await source.values(sinks)) }),
  };
}

async function latentFeeds(source: TensorSource, attention: LatentAttentionSpec): Promise<Feeds> {
  const { query, queryDown, queryNorm, kvDown, kvNorm, kvUp, rank } = attention;
  const layouts = latentLayouts(attention);
  return {
    ...(queryDown && (await linearFeeds(source, "queryDown", queryDown))),
    ...(queryNorm && (await source.norm("queryNorm", queryNorm, query.weight.shape[1] as number))),
    ...(await linearFeeds(source, "query", query, layouts.query)),
    ...(await linearFeeds(source, "kvDown", kvDown, layouts.kvDown)),
    ...(await source.norm("kvNorm", kvNorm, rank)),
    ...(await linearFeeds(source, "kvUp", kvUp)),
  };
}

/** A linear map whose outputs are heads that are laid out. */
async function linearFeeds(
  source: TensorSource,
  name: string,
  { weight, bias }: LinearSpec,
  layout?: HeadLayout,
): Promise<Feeds> {
  const [outputs, inputs] = weight.shape as [number, number];
  const laid = (values: Float32Array, inner: number) => (layout ? layHeads(values, layout, inner) : values);
  return {
    [name]: tensorOf(source, laid(await source.values(weight), inputs), outputs),
    ...(bias && { [`${name}Bias`]: tensorOf(source, laid(await source.values(bias), 1)) }),
  };
}

/** The map of heads back to hidden states, times the factor on what a block adds to the residual. */
async function outputFeeds(
  source: TensorSource,
  { weight, bias }: LinearSpec,
  layout: HeadLayout | undefined,
  scale: number,
): Promise<Feeds> {
  const scaled = (values: Float32Array) => (scale === 1 ? values : values.map((value) => value * scale));
  const values = scaled(await source.values(weight));
  const laid = layout ? layHeads(values, layout, 1) : values;
  return {
    output: tensorOf(source, laid, weight.shape[0] as number),
    ...(bias && { outputBias: tensorOf(source, scaled(await source.values(bias))) }),
  };
}

/** Query, key and value maps one below the other; a missing bias counts as zeros when another has one. */
async function stacked(source: TensorSource, linears: readonly LinearSpec[]) {
  const outputs = linears.map(({ weight }) => weight.shape[0] as number);
  const inputs = linears[0]?.weight.shape[1] as number;
  const total = outputs.reduce((sum, size) => sum + size, 0);
  const weight = new Float32Array(total * inputs);
  const bias = linears.some((linear) => linear.bias) ? new Float32Array(total) : undefined;
  let at = 0;
  for (const [i, linear] of linears.entries()) {
    const end = at + (outputs[i] as number);
    await source.values(linear.weight, weight.subarray(at * inputs, end * inputs));
    if (linear.bias && bias) await source.values(linear.bias, bias.subarray(at, end));
    at = end;
  }
  return { weight, bias, inputs };
}

/** A matrix of `rows` rows, or a vector. */
function tensorOf({ runtime }: TensorSource, values: Float32Array, rows?: number): Tensor {
  const shape = rows === undefined ? [values.length] : [rows, values.length / rows];
  return new runtime.Tensor("float32", values, shape);
}

import type { DecoderLayer, MlpSpec, MoeModel, MoeSpec } from "@coppice/core";
import { attentionNodes, layerValues, notRun, type PresentValue } from "./attention-nodes.js";
import { operatorHeads } from "./attention-shape.js";
import { decoderDims } from "./decoder-dims.js";
import { type DecoderInputOptions, decoderInputs } from "./decoder-inputs.js";
import { type ChoiceCounts, type ExpertForm, expertNodes } from "./expert-nodes.js";
import { type Graph, GraphBuilder, type Value } from "./graph-builder.js";
import { paddedShape } from "./head-layout.js";
import { mlp, mlpShape } from "./mlp.js";
import { dataTypes } from "./model-file.js";
import { addAndNorm, norm, normShape } from "./norms.js";
import type { PartWeights } from "./part-weights.js";
import { routingNodes } from "./routing-nodes.js";
import type { SpanLayout } from "./span-groups.js";

/** Where a decoder graph takes its weights from. */
export interface DecoderWeights {
  /** Rows of the embedding, [N, hidden], of `ids` int64 [N]. */
  embed(ids: Value): Value;
  /**
   * Those of a layer but for its MLPs: `attentionNorm`, `feedForwardNorm`, those of `groupedQueryInputs` or `latentInputs`
   * with heads as `headLayout` has them, `output` with heads as the checkpoint has them, `sinks`, `router`, `correction`
   * and `sharedGate`. KV heads, and the query heads of each, come in the order of `groupedHeads`, but for `output`.
   */
  block(layer: DecoderLayer): PartWeights;
  /** Those of one expert, shared expert or dense MLP, by the names of `mlpParts`, and `gateUp`, gate with up below it. @param name unique in the model */
  mlp(spec: MlpSpec, name: string): PartWeights;
  /** `norm` and `head`. */
  readonly head: PartWeights;
}

/** `positions` are at most `decoderPositions`. */
export interface DecoderGraphOptions extends Omit<DecoderInputOptions, "spans" | "oneToken"> {
  readonly experts: ExpertForm;
  /** Give the chosen experts of every MoE layer as well. */
  readonly expertOutputs: boolean;
  /** Give the keys and values of the new tokens alone as well, where all are of one size. Right with padding that may stand anywhere, or without any. */
  readonly newestOutput?: boolean;
  /** With that output: a run of one token need not give what is present, if the caller says so, and then reads the past where it lies. */
  readonly sparesPresent?: boolean;
  /** How far heads see; absent: as the model is. With it, `padding` is `behind`. */
  readonly spans?: SpanLayout;
}

/** Name of the output with the keys and values of the new tokens. */
export const newestOutput = "newest_key_values";

/**
 * A whole decoder with its cache of keys and values, from token ids to logits.
 *
 * Inputs: `input_ids` int64 [B, S]; `attention_mask` int64 [B, T], ones for past and present tokens, zeros for
 * padding (`padding`); `num_logits_to_keep` int64 [], of how many of the last tokens logits are wanted, 0 for all, and with
 * `sparesPresent` -n for as many as n in a run of one token of one sequence behind others of which nobody wants what is present; per layer
 * `past_key_values.{i}.key` and `.value` [B, kvHeads, P, size]. Sequences begin at position 0 and P may exceed the tokens
 * that are past: a buffer of the final size, given for the past and taken for the present, is extended in place.
 *
 * With spans, the inputs of a layer that they limit are `past_key_values.{i}.{k}.key` and `.value` for the heads of span k, `all` for those
 * that see everything, and so are the outputs. The past of span k is that of `CachePlaces`: the sinks first, the last tokens of
 * the window behind them in any order, and nothing empty between; new tokens come behind what it holds, wherever the caller
 * then keeps them. `attention_bias.{k}` float32 [B or 1, 1, S, held and new places] is added to scores: it hides places that are out of the
 * window of a token, as only some are when several tokens run at once.
 *
 * Outputs: `logits` [B, R, vocab]; per layer `present.{i}.key` and `.value` [B, kvHeads, max(P, T), size]; on request
 * `newest_key_values` [B, heads, S, size], of what is present that of the new tokens, all keys and values in the order of the inputs,
 * for callers that hold the past themselves. A run of one token of one sequence behind others whose caller does not want what is
 * present has the token's own keys and values there, [1, kvHeads, 1, size], and takes plain operators for its attention: ONNX Runtime's
 * clears and copies the whole cache, which at 512 tokens takes longer than attention itself. Per MoE layer `experts.{i}` int32 [B, S, topK], best first.
 */
export function decoderGraph(
  model: MoeModel,
  weightsOf: (graph: GraphBuilder) => DecoderWeights,
  options: DecoderGraphOptions,
): Graph {
  const { hiddenSize: hidden, vocabSize: vocab, layers, residualScale } = model;
  const graph = new GraphBuilder("decoder");
  const { spans: layout, ...common } = options;
  const sizes = new Set(
    layers.map((layer) =>
      layer.attention.kind === "other" ? 0 : operatorHeads(paddedShape(layer, hidden)).size,
    ),
  );
  const givesNewest = options.newestOutput === true && sizes.size === 1;
  const inputs = decoderInputs(graph, {
    ...common,
    oneToken: options.sparesPresent === true && givesNewest,
    ...(layout && { spans: layout.spans }),
  });
  const weights = weightsOf(graph);
  const times = (value: Value, factor: number | undefined) =>
    factor === undefined ? value : graph.node("Mul", [value, graph.float32(factor)]);
  let residual = times(weights.embed(inputs.ids), model.embeddingScale);
  /** What the last feed-forward block gave and is not yet part of `residual`. */
  let added: Value | undefined;
  const closed = (part: PartWeights, name: string, spec: DecoderLayer["attentionNorm"]): Value => {
    if (added === undefined) return norm(graph, part, residual, name, hidden, normShape(spec));
    const names = { sum: graph.name("residual"), normed: graph.name("normed") };
    addAndNorm(graph, part, [added, residual], name, hidden, normShape(spec), names);
    residual = names.sum;
    return names.normed;
  };
  // The last layer's experts only see tokens of which logits are wanted, unless what they choose is wanted of all.
  const cutAt = options.expertOutputs ? layers.length : layers.length - 1;
  const presents: PresentValue[] = [];
  let counts = new Map<number, ChoiceCounts>();
  for (const layer of layers) {
    const part = weights.block(layer);
    const normed = closed(part, "attentionNorm", layer.attentionNorm);
    let attended = attentionNodes(graph, part, layer, normed, inputs, hidden, layout?.layers[layer.index]);
    presents.push(...attended.presents);
    if (layer.index === cutAt) {
      attended = { ...attended, value: inputs.last(attended.value, attended.width) };
      residual = inputs.last(residual, hidden);
      counts = new Map();
    }
    const projected = part.linear(attended.value, "output", [hidden, attended.width], {
      bias: attended.bias,
    });
    const names = { sum: graph.name("residual"), normed: graph.name("normed") };
    const sums = [times(projected, residualScale), residual] as const;
    addAndNorm(graph, part, sums, "feedForwardNorm", hidden, normShape(layer.feedForwardNorm), names);
    residual = names.sum;
    added = times(feedForward(layer, part, names.normed), residualScale);
  }
  if (cutAt === layers.length) {
    residual = inputs.last(residual, hidden);
    added = added && inputs.last(added, hidden);
  }
  const normed = closed(weights.head, "norm", model.finalNorm);
  const logits = weights.head.linear(normed, "head", [vocab, hidden], {
    bias: model.headBias !== undefined,
    ...(model.logitScale !== undefined && { scale: model.logitScale }),
  });
  const { batch, sequence } = decoderDims;
  graph.output(inputs.perSequence(logits, vocab, "logits"), [batch, "logits_length", vocab]);
  for (const { name, shape } of presents) graph.output(name, shape);
  if (givesNewest) outputNewest();
  for (const { index, feedForward } of options.expertOutputs ? layers : []) {
    if (feedForward.kind !== "moe") continue;
    graph.output(layerValues.chosenExperts(index), [batch, sequence, feedForward.router.topK], "int32");
  }
  return graph.build();

  function outputNewest(): void {
    const heads = presents.reduce((sum, { shape }) => sum + (shape[1] as number), 0);
    const shape = [batch, heads, sequence, ...sizes];
    const joined = (parts: readonly Value[], name?: string) =>
      graph.node("Concat", parts, { attributes: { axis: 1 } }, name);
    const cut = (name?: string) =>
      joined(
        presents.map(({ name, span }) => inputs.newest(name, span)),
        name,
      );
    if (inputs.oneToken) {
      for (const { span } of presents) inputs.newestPlaces(span);
      graph.choose(
        inputs.oneToken.condition,
        [newestOutput],
        () => [{ value: joined(presents.map(({ name }) => name)), shape }],
        () => [{ value: cut(), shape }],
      );
    } else {
      cut(newestOutput);
    }
    graph.output(newestOutput, shape);
  }

  function feedForward({ feedForward: spec, index }: DecoderLayer, part: PartWeights, normed: Value): Value {
    const whole = (mlpSpec: MlpSpec, name: string) =>
      mlp(graph, weights.mlp(mlpSpec, `layers.${index}.${name}`), normed, mlpShape(mlpSpec, hidden));
    if (spec.kind === "dense") return whole(spec.mlp, "mlp");
    if (spec.kind === "other") throw notRun(index);
    const routed = routedExperts(spec, part, normed, index);
    if (!spec.shared) return routed;
    let shared = whole(spec.shared, "shared");
    if (spec.sharedGate) {
      const gate = part.linear(normed, "sharedGate", [1, hidden]);
      shared = graph.node("Mul", [shared, graph.node("Sigmoid", [gate])]);
    }
    return graph.node("Add", [routed, shared]);
  }

  function routedExperts(
    { router, experts }: MoeSpec,
    part: PartWeights,
    normed: Value,
    index: number,
  ): Value {
    const bias = router.bias !== undefined;
    const logits = part.linear(normed, "router", [experts.length, hidden], { bias });
    const choices = routingNodes(graph, part, logits, router);
    if (options.expertOutputs) {
      const chosen = graph.node("Cast", [choices.experts], { attributes: { to: dataTypes.int32 } });
      inputs.perSequence(chosen, router.topK, layerValues.chosenExperts(index));
    }
    // Experts of a layer are alike in shape.
    const shape = mlpShape(experts[0] as MlpSpec, hidden);
    const scalesInput = router.scalesInput === true;
    const layer = {
      shape,
      experts: experts.length,
      topK: router.topK,
      scalesInput,
      counts,
      weights: (expert: number) =>
        weights.mlp(experts[expert] as MlpSpec, `layers.${index}.experts.${expert}`),
    };
    return expertNodes(graph, normed, choices, layer, options.experts);
  }
}

import { type NormalizeSpec, type RouterSpec, type SkipRule, skipRuleOf } from "@coppice/core";
import type { GraphBuilder, Value } from "./graph-builder.js";
import type { PartWeights } from "./part-weights.js";

/** What a token chose. */
export interface Choices {
  /** int64 [N, topK], chosen experts; those that a rule skips are among them, with a gate weight of 0. */
  readonly experts: Value;
  /** [N, topK] */
  readonly gates: Value;
}

/**
 * Router logits become choices inside the graph, in the family's exact order (`routeTokens` of core has the definition).
 * @param logits [N, E], the router's bias included
 * @param weights gives `correction` [E] where the router has one
 */
export function routingNodes(
  graph: GraphBuilder,
  weights: PartWeights,
  logits: Value,
  given: RouterSpec,
): Choices {
  const router = overChosen(given);
  const skip = skipRuleOf(router);
  const chosen =
    router.order === "sparsemixer"
      ? mixSparsely(graph, logits, router)
      : chooseTop(graph, weights, logits, router);
  const { experts, gates } = skip ? skipChoices(graph, chosen, skip) : chosen;
  // The softmax over the chosen is one over those that are left.
  const dividesChosen = skip && router.order === "topk-softmax" ? { power: 1 } : undefined;
  const normalize = router.normalize ?? dividesChosen;
  const divided = normalize && router.order !== "sparsemixer" ? divide(graph, gates, normalize) : gates;
  const { scale } = router;
  return {
    experts,
    gates:
      scale === undefined || router.order === "sparsemixer"
        ? divided
        : graph.node("Mul", [divided, graph.float32(scale)]),
  };
}

/**
 * A softmax over all experts of which the chosen are divided by their sum is the softmax over the chosen: two operators less for every
 * token and layer. Only where nothing else sees the scores.
 */
function overChosen(router: RouterSpec): RouterSpec {
  const { normalize, ...rest } = router;
  const isSum = normalize?.power === 1 && normalize.least === undefined && !normalize.epsilon;
  const isPlain = router.order === "softmax-topk" && !router.correction && !router.groups;
  return isSum && isPlain && !skipRuleOf(router) ? { ...rest, order: "topk-softmax" } : router;
}

/** Why a graph cannot route as `router` does, or undefined. */
export function routingObstacle(router: RouterSpec): string | undefined {
  const { groups, topK, weight } = router;
  if (router.skip?.spare)
    return "its rule for skipping experts spares tokens by the attention that they receive";
  if (!groups) return undefined;
  const experts = weight.shape[0] as number;
  if (experts % groups.count !== 0) return `its ${experts} experts do not form ${groups.count} equal groups`;
  const open = (experts / groups.count) * groups.keep;
  return open < topK
    ? `the ${open} experts of its best groups are fewer than its top-k of ${topK}`
    : undefined;
}

function chooseTop(graph: GraphBuilder, weights: PartWeights, logits: Value, router: RouterSpec): Choices {
  const { order, topK, groups } = router;
  const experts = router.weight.shape[0] as number;
  const scores =
    order === "softmax-topk"
      ? graph.node("Softmax", [logits], { attributes: { axis: -1 } })
      : order === "sigmoid-topk"
        ? graph.node("Sigmoid", [logits])
        : logits;
  let selection = scores;
  if (router.correction) selection = graph.node("Add", [scores, weights.vector("correction", experts)]);
  if (groups) selection = limitToGroups(graph, selection, experts, groups);
  const [best, chosen] = top(graph, selection, topK);
  const gates =
    selection === scores ? best : graph.node("GatherElements", [scores, chosen], { attributes: { axis: 1 } });
  if (order === "topk-softmax") {
    return { experts: chosen, gates: graph.node("Softmax", [gates], { attributes: { axis: -1 } }) };
  }
  return { experts: chosen, gates: order === "topk-sigmoid" ? graph.node("Sigmoid", [gates]) : gates };
}

/** The largest `count` values of every row, descending, ties to the lower index. @returns values and int64 indices */
function top(graph: GraphBuilder, values: Value, count: number): readonly [Value, Value] {
  const outputs = [graph.name("best"), graph.name("chosen")] as const;
  graph.nodes("TopK", [values, graph.int64([count])], outputs, {
    attributes: { axis: -1, largest: 1, sorted: 1 },
  });
  return outputs;
}

function limitToGroups(
  graph: GraphBuilder,
  selection: Value,
  experts: number,
  { count, keep, score }: NonNullable<RouterSpec["groups"]>,
): Value {
  const last = graph.int64([-1]);
  const grouped = graph.node("Reshape", [selection, graph.int64([-1, count, experts / count])]);
  const sum = (values: Value) => graph.node("ReduceSum", [values, last], { attributes: { keepdims: 0 } });
  const scores =
    score === "max" || experts === count
      ? graph.node("ReduceMax", [grouped, last], { attributes: { keepdims: 0 } })
      : sum(top(graph, grouped, 2)[0]);
  const [, kept] = top(graph, scores, keep);
  const zeros = graph.node("Mul", [scores, graph.float32(0)]);
  const ones = graph.node("Expand", [graph.float32(1), graph.node("Shape", [kept])]);
  const marks = graph.node("ScatterElements", [zeros, kept, ones], { attributes: { axis: 1 } });
  const open = graph.node("Unsqueeze", [graph.node("Greater", [marks, graph.float32(0)]), last]);
  const limited = graph.node("Where", [open, grouped, graph.float32(Number.NEGATIVE_INFINITY)]);
  return graph.node("Reshape", [limited, graph.int64([-1, experts])]);
}

function divide(graph: GraphBuilder, gates: Value, { power, least, epsilon = 0 }: NormalizeSpec): Value {
  const raised = (value: Value, exponent: number) =>
    exponent === 1 ? value : graph.node("Pow", [value, graph.float32(exponent)]);
  const terms = power === 1 ? gates : raised(graph.node("Abs", [gates]), power);
  const sum = graph.node("ReduceSum", [terms, graph.int64([-1])], { attributes: { keepdims: 1 } });
  let norm = raised(sum, 1 / power);
  if (least !== undefined) norm = graph.node("Max", [norm, graph.float32(least)]);
  if (epsilon > 0) norm = graph.node("Add", [norm, graph.float32(epsilon)]);
  return graph.node("Div", [gates, norm]);
}

/** Gate weights of choices that a rule skips become 0; `skipExperts` of core has the definition. */
function skipChoices(
  graph: GraphBuilder,
  { experts, gates }: Choices,
  { rule, threshold }: SkipRule,
): Choices {
  const zero = graph.float32(0);
  const limit = graph.float32(threshold);
  if (rule === "ratio") {
    const most = graph.node("ReduceMax", [gates, graph.int64([-1])], { attributes: { keepdims: 1 } });
    const least = graph.node("Mul", [most, limit]);
    return { experts, gates: graph.node("Where", [graph.node("Less", [gates, least]), zero, gates]) };
  }
  // By descending gate weight, which a correction or groups may have changed; the order of choices has no meaning.
  const outputs = [graph.name("sorted"), graph.name("order")] as const;
  const count = graph.node("Shape", [gates], { attributes: { start: 1 } });
  graph.nodes("TopK", [gates, count], outputs, { attributes: { axis: -1, largest: 1, sorted: 1 } });
  const [sorted, order] = outputs;
  const before = graph.node("CumSum", [sorted, graph.int64([1], [])], { attributes: { exclusive: 1 } });
  const total = graph.node("ReduceSum", [sorted, graph.int64([-1])], { attributes: { keepdims: 1 } });
  const share = graph.node("Mul", [total, limit]);
  // The best one runs even with a threshold of 0: nothing is before it, so it is left when something less is asked for.
  const enough = graph.node("And", [
    graph.node("GreaterOrEqual", [before, share]),
    graph.node("Greater", [before, zero]),
  ]);
  return {
    experts: graph.node("GatherElements", [experts, order], { attributes: { axis: 1 } }),
    gates: graph.node("Where", [enough, zero, sorted]),
  };
}

/** SparseMixer-v2 at inference; `routeTokens` of core has the formula. */
function mixSparsely(graph: GraphBuilder, logits: Value, { topK, jitter = 0 }: RouterSpec): Choices {
  const experts: Value[] = [];
  const gates: Value[] = [];
  const nothing = graph.float32(Number.NEGATIVE_INFINITY);
  let open = logits;
  for (let rank = 0; rank < topK; rank++) {
    const [most, best] = top(graph, open, 1);
    const distance = graph.node("Div", [
      graph.node("Sub", [most, logits]),
      graph.node("Max", [graph.node("Abs", [logits]), most]),
    ]);
    const far = graph.node("Greater", [distance, graph.float32(2 * jitter)]);
    const near = graph.node("Where", [far, nothing, open]);
    const shares = graph.node("Softmax", [near], { attributes: { axis: -1 } });
    experts.push(best);
    gates.push(graph.node("GatherElements", [shares, best], { attributes: { axis: 1 } }));
    if (rank + 1 === topK) break;
    const taken = graph.node("Expand", [nothing, graph.node("Shape", [best])]);
    open = graph.node("ScatterElements", [open, best, taken], { attributes: { axis: 1 } });
  }
  const joined = (parts: readonly Value[]) => graph.node("Concat", parts, { attributes: { axis: 1 } });
  return { experts: joined(experts), gates: joined(gates) };
}

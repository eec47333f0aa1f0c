import type { MlpSpec, MoeSpec, RouterSpec } from "@coppice/core";

/** How tokens choose experts, as one line. */
export function routingWords({ router, experts }: MoeSpec): string {
  const all = experts.length;
  const { correction, bias, scale, groups, normalize, scalesInput } = router;
  const parts = [orderWords(router, all)];
  if (correction) parts.push("chosen by score plus correction");
  if (bias) parts.push("router with bias");
  if (groups) {
    const score = groups.score === "max" ? "score" : "sum of two scores";
    parts.push(`from the ${groups.keep} of ${groups.count} groups with the largest ${score}`);
  }
  const usesScores = router.order === "softmax-topk" || router.order === "sigmoid-topk";
  if (usesScores) parts.push(normalize ? normWords(normalize) : "not divided by their sum");
  if (scale !== undefined) parts.push(`times ${scale}`);
  if (scalesInput) parts.push("gate weights multiply the input of experts");
  return parts.join(", ");
}

function orderWords({ order, topK }: RouterSpec, experts: number): string {
  const top = `the top ${topK}`;
  switch (order) {
    case "softmax-topk":
      return `softmax over ${experts} experts, then ${top}`;
    case "sigmoid-topk":
      return `sigmoid of ${experts} logits, then ${top}`;
    case "topk-softmax":
      return `${top} of ${experts} logits, then softmax over those`;
    case "topk-sigmoid":
      return `${top} of ${experts} logits, then sigmoid of each`;
    case "sparsemixer":
      return `sparsemixer: ${topK} of ${experts} experts one after the other, each weighted among those near it`;
  }
}

function normWords({ power, least }: NonNullable<RouterSpec["normalize"]>): string {
  const norm = power === 1 ? "divided by their sum" : `divided by their L${power} norm`;
  return least === undefined ? norm : `${norm}, at least ${least}`;
}

/** The MLP beside the routed experts, as words; undefined when there is none. */
export function sharedWords({ shared, sharedGate }: MoeSpec): string | undefined {
  return shared && `${mlpWords(shared)}${sharedGate ? ", multiplied by the sigmoid of its gate" : ""}`;
}

export function mlpWords({ width, gate, activation }: MlpSpec): string {
  return `width ${width}, ${gate ? "gate, up and down" : "up and down"}, ${activation.kind}`;
}

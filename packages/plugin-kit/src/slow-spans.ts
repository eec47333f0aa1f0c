import type { AttentionPlan } from "@coppice/core";
import type { SlowSight } from "./slow-model.js";

/**
 * What heads see under an attention plan resolved at `length` tokens, word for word as plans are defined: of the span
 * alpha + beta * length, in whole blocks and with a key behind the sinks at least, the sinks stand at the beginning of the
 * text and the rest ends at the query. A span of the whole length or more is no limit.
 */
export function slowSight(plan: AttentionPlan, length: number): SlowSight {
  return (layer, head, query, key) => {
    const rules = plan.layers[layer];
    if (!rules) return true;
    const { heads, kvHeads } = plan.model;
    const rule = plan.rules[rules[Math.floor(head / (heads / kvHeads))] as number];
    if (!rule) throw new Error(`the plan has no rule for head ${head} of layer ${layer}`);
    let span = 0;
    while (span < rule.alpha + rule.beta * length || span <= plan.sinks) span += plan.blockSize;
    if (span >= length) return true;
    return key < plan.sinks || query - key < span - plan.sinks;
  };
}

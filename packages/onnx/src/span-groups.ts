import type { HeadSpan, LayerSpans } from "@coppice/core";

/** KV heads of a layer that see equally far, and so have arrays of one length in a cache. */
export interface SpanGroup {
  /** KV heads, ascending. */
  readonly heads: readonly number[];
  /** Which of the layout's spans they have; undefined: they see everything. */
  readonly span: number | undefined;
}

/** How far the heads of a decoder graph see. */
export interface SpanLayout {
  /** All spans that heads have, each once. */
  readonly spans: readonly HeadSpan[];
  /** Groups of every decoder layer, by their first heads; undefined for a layer that is as the model has it. */
  readonly layers: readonly (readonly SpanGroup[] | undefined)[];
}

/** Groups the heads of all layers by their spans. @param layers by decoder layer; undefined: as the model is */
export function spanLayout(layers: readonly (LayerSpans | undefined)[]): SpanLayout {
  const spans: HeadSpan[] = [];
  const indexOf = ({ sinks, window }: HeadSpan) => {
    const known = spans.findIndex((span) => span.sinks === sinks && span.window === window);
    return known >= 0 ? known : spans.push({ sinks, window }) - 1;
  };
  return {
    spans,
    layers: layers.map((heads) => {
      if (!heads) return undefined;
      const groups = new Map<number | undefined, number[]>();
      for (const [head, span] of heads.entries()) {
        const index = span && indexOf(span);
        groups.set(index, [...(groups.get(index) ?? []), head]);
      }
      return [...groups].map(([span, heads]) => ({ heads, span }));
    }),
  };
}

/** KV heads in the order of the groups; undefined when that is the order that they have anyway. */
export function groupedHeads(groups: readonly SpanGroup[] | undefined): readonly number[] | undefined {
  const order = groups?.flatMap(({ heads }) => heads);
  return order?.some((head, place) => head !== place) ? order : undefined;
}

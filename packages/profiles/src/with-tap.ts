import type { LayerTap, RunRequest, Tap, TapField } from "@coppice/core";

/** A request that shows more of its MoE layers, beside what its own tap asks for. */
export function withTap(
  request: RunRequest,
  fields: readonly TapField[],
  onLayer: (layer: LayerTap) => void,
): RunRequest {
  const { tap } = request;
  const both: Tap = {
    ...tap,
    fields: [...new Set([...(tap?.fields ?? []), ...fields])],
    onLayer(layer) {
      onLayer(layer);
      tap?.onLayer(layer);
    },
  };
  return { ...request, tap: both };
}

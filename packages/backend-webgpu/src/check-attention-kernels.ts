import type { LayerRange, MoeModel } from "@coppice/core";
import { type AttentionCheck, checkAttention, type Gpu, selfCheck } from "@coppice/kernels-webgpu";
import { shapeOf } from "./attention-block.js";

/** What the attention of a run needs beside splits of keys, which are checked on load. */
export interface AttentionUse {
  /** Whether tiles of queries are used. */
  readonly tiles: boolean;
  readonly spans: boolean;
  readonly masks: boolean;
}

const known = new WeakMap<Gpu, WeakMap<MoeModel, Set<string>>>();

/**
 * Runs kernels of attention on small values against a formula in float64, before the first run that uses them.
 * @throws COPPICE_BACKEND_UNAVAILABLE with the name of the first kernel that is wrong
 */
export async function checkAttentionKernels(
  gpu: Gpu,
  model: MoeModel,
  range: LayerRange,
  { tiles, spans, masks }: AttentionUse,
): Promise<void> {
  const models = known.get(gpu) ?? new WeakMap<MoeModel, Set<string>>();
  const done = models.get(model) ?? new Set<string>();
  const key = `${tiles} ${spans} ${masks}`;
  if (done.has(key)) return;
  const all = smallAttention(model, range);
  // What a plan or a masker limits neither slides nor has chunks.
  const free = all.filter(({ shape: { window, chunk } }) => window === 0 && chunk === 0);
  const checks: AttentionCheck[] = [
    ...(tiles ? all.map((small) => ({ ...small, way: "prefill" as const })) : []),
    ...(spans
      ? free.map((small) => ({
          ...small,
          sequences: [{ tokens: 3, past: 20 }],
          way: tiles ? ("prefill" as const) : ("split" as const),
          sight: "rings" as const,
        }))
      : []),
    ...(masks
      ? free.map((small) => ({
          ...small,
          sequences: [{ tokens: 20, past: 0 }],
          way: "prefill" as const,
          sight: "blocks" as const,
        }))
      : []),
  ];
  await selfCheck(
    gpu,
    checks.map((check) => checkAttention(check)),
  );
  known.set(gpu, models.set(model, done.add(key)));
}

/** The attention of every layer with fewer heads of the same sizes; windows and chunks are as short as the check. */
export function smallAttention(
  model: MoeModel,
  { from, to }: LayerRange,
): Pick<AttentionCheck, "shape" | "sinks" | "sequences">[] {
  return model.layers.slice(from, to).flatMap(({ attention }) => {
    if (attention.kind === "other") return [];
    const shape = shapeOf(attention);
    return {
      shape: {
        ...shape,
        heads: Math.max(1, shape.heads / shape.kvHeads),
        kvHeads: 1,
        window: shape.window && 5,
        chunk: shape.chunk && 6,
        scale: 1 / shape.keyDim,
      },
      sinks: attention.kind === "gqa" && attention.sinks !== undefined,
      sequences: [{ tokens: 9, past: 2 }],
    };
  });
}

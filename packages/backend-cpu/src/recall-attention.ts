import { routerGraph } from "@coppice/onnx";
import { type Attended, type AttentionRequest, runAttention } from "./attention.js";
import type { UnitMemory } from "./layer-memory.js";
import type { Runtime, Sessions } from "./sessions.js";

/** `runAttention` where a memory does not know its result; else the router alone, which is a plan's own. */
export async function recallAttention(
  runtime: Runtime,
  sessions: Sessions,
  memory: UnitMemory | undefined,
  request: AttentionRequest,
): Promise<Attended> {
  const known = memory?.attended;
  if (!known) {
    const attended = await runAttention(runtime, sessions, request);
    memory?.keepAttended(attended.normed, attended.residual);
    return attended;
  }
  const { router } = request;
  const hidden = request.hidden.dims[1] as number;
  const bias = router.routerBias !== undefined;
  const key = `router ${JSON.stringify({ hidden, bias })}`;
  const feeds = { normed: known.normed, ...router };
  const { logits } = await sessions.run(key, () => routerGraph(hidden, { bias }), feeds);
  return { ...known, logits, received: undefined };
}

import { sparedTokens, tokenImportance } from "@coppice/core";
import type { GpuBuffer } from "@coppice/kernels-webgpu";
import type { MoeContext } from "./moe-block.js";

/**
 * The tokens that skip nothing, 1 for each, sequence by sequence; none where a sequence runs one token alone. Importance is sorted
 * on the host, so what it is made of is read back.
 * @param received [tokens] attention that each token gets
 * @param input [tokens, hidden] of the MoE block
 */
export async function sparedRows(
  { gpu, hidden }: MoeContext,
  received: GpuBuffer,
  input: GpuBuffer,
  starts: Int32Array,
  share: number,
  heads: number,
): Promise<Uint32Array> {
  const tokens = starts[starts.length - 1] as number;
  const [a, b] = await gpu.read([
    { buffer: received, bytes: 4 * tokens },
    { buffer: input, bytes: 4 * tokens * hidden },
  ]);
  const sums = new Float32Array(a as ArrayBuffer);
  const values = new Float32Array(b as ArrayBuffer);
  const spared = new Uint32Array(tokens);
  for (let s = 0; s + 1 < starts.length; s++) {
    const [start, end] = [starts[s] as number, starts[s + 1] as number];
    if (end - start < 2) continue;
    const own = values.subarray(start * hidden, end * hidden);
    spared.set(sparedTokens(tokenImportance(sums.subarray(start, end), heads, own), share), start);
  }
  return spared;
}

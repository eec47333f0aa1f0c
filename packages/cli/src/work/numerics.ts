import { createHash } from "node:crypto";
import type { MoeModel } from "@coppice/core";
import type { WorkPool } from "./work-pool.js";

/**
 * Hash of the logits of a fixed input: equal exactly for machines whose arithmetic agrees. "elsewhere" for a pool whose
 * models are on other machines.
 */
export async function numericsOf(pool: WorkPool, model: MoeModel): Promise<string> {
  if (!pool.logits) return "elsewhere";
  const length = Math.min(16, model.contextLength, model.vocabSize);
  const [rows = []] = await pool.logits([Int32Array.from({ length }, (_, i) => i)], { all: true });
  const hash = createHash("sha256");
  for (const row of rows) hash.update(new Uint8Array(row.buffer, row.byteOffset, row.byteLength));
  return hash.digest("hex").slice(0, 16);
}

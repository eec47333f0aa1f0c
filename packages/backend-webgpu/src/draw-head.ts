import { type MoeModel, nothingToDraw, type TokenDraw } from "@coppice/core";
import {
  checkDraw,
  drawBytes,
  drawTables,
  drawTokens,
  type Gpu,
  type GpuBuffer,
  noToken,
  selfCheck,
} from "@coppice/kernels-webgpu";
import { type Head, projectRows, rowsAtOnce } from "./head.js";
import type { MoeContext } from "./moe-block.js";

/** Each takes 37 kB of sums. */
const mostRows = 256;

/**
 * As `checkKernels`, for drawing tokens by such a rule.
 * @throws COPPICE_BACKEND_UNAVAILABLE
 */
export async function checkDrawKernels(gpu: Gpu, { rule }: TokenDraw): Promise<void> {
  const small = { rows: 2, vocab: 1500 };
  const rules = rule.temperature
    ? [
        { temperature: 0.8, minP: 0.02 },
        { temperature: 2, topK: 100, topP: 0.7, minP: 0.1, repetitionPenalty: 1.3 },
      ]
    : [{ repetitionPenalty: 1.3 }];
  await selfCheck(
    gpu,
    rules.map((own) => checkDraw({ ...small, rule: own })),
  );
}

/** Tokens drawn at packed rows of the request, which alone leave the device; x is the last layer's output. */
export async function drawHead(
  context: MoeContext,
  model: MoeModel,
  head: Head,
  rows: Int32Array,
  draw: TokenDraw,
  x: GpuBuffer,
): Promise<{ drawn: Int32Array }> {
  const { gpu, workspace } = context;
  const { vocabSize: vocab } = model;
  const drawn = new Int32Array(rows.length);
  const most = Math.min(mostRows, rowsAtOnce(context, model));
  for (let from = 0; from < rows.length; from += most) {
    const block = rows.subarray(from, from + most);
    const count = block.length;
    const { uniforms, seen } = drawTables(draw, from, count, vocab);
    const bytes = drawBytes(count, vocab);
    const take = (name: "peaks" | "sums" | "states") => workspace.take(`draw ${name}`, bytes[name] / 4);
    const tokens = workspace.take("drawn tokens", count);
    const tables = {
      uniforms: workspace.put("draw uniforms", uniforms),
      seen: seen && workspace.put("draw seen", seen),
    };
    drawTokens(gpu, {
      ...tables,
      logits: await projectRows(context, model, head, block, x),
      rows: count,
      vocab,
      rule: draw.rule,
      tokens,
      work: { peaks: take("peaks"), sums: take("sums"), states: take("states") },
    });
    const [read] = await gpu.read([{ buffer: tokens, bytes: 4 * count }]);
    const found = new Uint32Array(read as ArrayBuffer);
    if (found.includes(noToken)) throw nothingToDraw("NaN or infinite");
    drawn.set(found, from);
  }
  return { drawn };
}

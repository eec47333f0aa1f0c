import type { LayerRange, LinearSpec, MoeModel } from "@coppice/core";
import {
  type AttentionCall,
  attendPrefill,
  checkAttention,
  checkMatmul,
  checkNorm,
  type Gpu,
  type Implementation,
  type KernelCheck,
  type MatmulCall,
  type NormCall,
  selfCheck,
} from "@coppice/kernels-webgpu";
import { smallAttention } from "./check-attention-kernels.js";
import type { Operators } from "./operators.js";
import { commonFormat } from "./weight-format.js";

/** Tokens of a prompt that are more than attention takes at once. */
const promptTokens = 40;

/**
 * Runs operators of ONNX Runtime as `checkKernels` does ours: for one token and for several, with weights of every format that
 * projections of a model have, and with heads of all its layers.
 * @throws COPPICE_BACKEND_UNAVAILABLE with the name of the first operator that is wrong
 */
export async function checkOperators(
  gpu: Gpu,
  model: MoeModel,
  range: LayerRange,
  canReadCodes: boolean,
  operators: Operators,
): Promise<void> {
  const multiply: Implementation<MatmulCall> = {
    name: "products of ONNX Runtime",
    run: (_, call) => operators.multiply(call),
  };
  const normalize: Implementation<NormCall> = {
    name: "norms of ONNX Runtime",
    run: (_, call) => operators.normalize(call),
  };
  const attend: Implementation<AttentionCall> = {
    name: "attention of ONNX Runtime",
    run: async (_, call) => {
      const prompt = { ...call, sequences: 1, length: call.tokens };
      if (!(await operators.attend(prompt))) attendPrefill(gpu, call);
    },
  };
  const checks: KernelCheck[] = [checkNorm("rms", 72, false, normalize)];
  for (const { weight, bias } of projections(model, range)) {
    const format = commonFormat([weight], canReadCodes, operators.wide);
    const columns = format.kind === "quantized" ? 2 * format.groupSize : 72;
    for (const rows of [1, promptTokens]) {
      checks.push(
        checkMatmul({ format, rows, columns, outputs: 40, bias: bias !== undefined, by: multiply }),
      );
    }
  }
  for (const { shape, sinks } of smallAttention(model, range)) {
    const sequences = [{ tokens: promptTokens, past: 0 }];
    if (!sinks) checks.push(checkAttention({ shape, sinks, sequences, way: "prefill" }, attend));
  }
  await selfCheck(gpu, checks);
}

function projections(model: MoeModel, { from, to }: LayerRange): LinearSpec[] {
  const { head, headBias } = model;
  const own = model.layers.slice(from, to).flatMap(({ attention }) => {
    if (attention.kind === "other") return [];
    const { query, output } = attention;
    if (attention.kind === "gqa") return [query, attention.key, attention.value, output];
    const { queryDown, kvDown, kvUp } = attention;
    return [...(queryDown ? [queryDown] : []), query, kvDown, kvUp, output];
  });
  return [...own, { weight: head, ...(headBias && { bias: headBias }) }];
}

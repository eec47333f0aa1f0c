import { CoppiceError } from "@coppice/core";
import type { InferenceSession } from "./onnx-runtime.js";

/** A tensor of keys or values that one run hands to the next. */
export interface CacheTensor {
  /** Graph input with what ran before, [1, heads, past, size]. */
  readonly input: string;
  /** Graph output with the new tokens added, [1, heads, past + new, size]. */
  readonly output: string;
  readonly type: "float32" | "float16";
  readonly heads: number;
  readonly size: number;
}

/** What a graph takes and gives, under the names that optimum and transformers.js use. */
export interface GraphInterface {
  readonly cache: readonly CacheTensor[];
  readonly takesPositions: boolean;
  /** The graph has `num_logits_to_keep`, so that it need not compute logits of a whole prompt. */
  readonly keepsLogits: boolean;
  /** Outputs with the chosen experts of MoE layers, in layer order, and their layers; see `ModelPiece.experts`. */
  readonly experts: readonly { readonly output: string; readonly layer: number }[];
}

const plainInputs = new Set(["input_ids", "attention_mask", "position_ids", "num_logits_to_keep"]);

/**
 * Reads what a session's graph takes and gives.
 * @throws COPPICE_BACKEND_UNSUPPORTED when it is no decoder with cached keys and values
 */
export function graphInterface(session: InferenceSession, label: string): GraphInterface {
  const refuse = (why: string) =>
    new CoppiceError("COPPICE_BACKEND_UNSUPPORTED", `the graph of ${label} ${why}`, {
      hint: "expected a decoder with input_ids, attention_mask, past_key_values.*, logits and present.*",
    });
  const outputs = new Set(session.outputNames);
  const inputs = new Set(session.inputNames);
  for (const name of ["input_ids", "attention_mask"])
    if (!inputs.has(name)) throw refuse(`has no input ${name}`);
  if (!outputs.has("logits")) throw refuse("has no output logits");
  const cache: CacheTensor[] = [];
  for (const input of session.inputMetadata) {
    const { name } = input;
    if (plainInputs.has(name)) continue;
    const output = name.replace(/^past_key_values\./, "present.");
    if (!name.startsWith("past_key_values.") || !outputs.has(output))
      throw refuse(`has the input ${name.slice(0, 200)}`);
    const [, heads, , size] = input.isTensor ? input.shape : [];
    const type = input.isTensor ? input.type : undefined;
    if (typeof heads !== "number" || typeof size !== "number" || (type !== "float32" && type !== "float16")) {
      const shown = input.isTensor ? `${input.type} [${input.shape.join(", ")}]` : "no tensor";
      throw refuse(`has ${name} as ${shown}, expected float32 or float16 [batch, heads, past, size]`);
    }
    cache.push({ input: name, output, type, heads, size });
  }
  if (cache.length === 0) throw refuse("has no input past_key_values.*");
  return {
    cache,
    takesPositions: inputs.has("position_ids"),
    keepsLogits: inputs.has("num_logits_to_keep"),
    experts: session.outputNames
      .flatMap((output) => {
        const layer = /^experts\.(\d{1,6})$/.exec(output)?.[1];
        return layer === undefined ? [] : [{ output, layer: Number(layer) }];
      })
      .sort((a, b) => a.layer - b.layer),
  };
}

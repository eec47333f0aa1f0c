import { CachePlaces, CoppiceError, type HeadSpan } from "@coppice/core";
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
  /** Absent: there is a place for every token. */
  readonly span?: HeadSpan;
  readonly layout: CachePlaces;
}

/** What a graph takes and gives, under the names that optimum and transformers.js use. */
export interface GraphInterface {
  readonly cache: readonly CacheTensor[];
  /** What is added to the scores of heads with a span, [batch, 1, tokens, held and new places]. */
  readonly biases: readonly { readonly input: string; readonly span: HeadSpan }[];
  /** Output with what is new in all of `cache`, in its order, [1, heads of all, new tokens, size]; of float32 alone. */
  readonly newest: string | undefined;
  readonly takesPositions: boolean;
  /** The graph has `num_logits_to_keep`, so that it need not compute logits of a whole prompt. */
  readonly keepsLogits: boolean;
  /** Outputs with the chosen experts of MoE layers, in layer order, and their layers; see `ModelPiece.experts`. */
  readonly experts: readonly { readonly output: string; readonly layer: number }[];
}

const newest = "newest_key_values";
const plainInputs = new Set(["input_ids", "attention_mask", "position_ids", "num_logits_to_keep"]);

/** The number of a span in the name of an input; "all" are heads of such a layer that see everything. */
const spanOfBias = /^attention_bias\.(\d{1,6})$/;
const spanOfCache = /^past_key_values\.\d{1,6}\.(\d{1,6})\./;

/**
 * Reads what a session's graph takes and gives.
 * @param spans those that its heads have
 * @throws COPPICE_BACKEND_UNSUPPORTED when it is no decoder with cached keys and values
 */
export function graphInterface(
  session: InferenceSession,
  label: string,
  spans: readonly HeadSpan[] = [],
): GraphInterface {
  const refuse = (why: string) =>
    new CoppiceError("COPPICE_BACKEND_UNSUPPORTED", `the graph of ${label} ${why}`, {
      hint: "expected a decoder with input_ids, attention_mask, past_key_values.*, logits and present.*",
    });
  const outputs = new Set(session.outputNames);
  const inputs = new Set(session.inputNames);
  for (const name of ["input_ids", "attention_mask"])
    if (!inputs.has(name)) throw refuse(`has no input ${name}`);
  if (!outputs.has("logits")) throw refuse("has no output logits");
  const numbered = (name: string, form: RegExp): HeadSpan | undefined => {
    const number = form.exec(name)?.[1];
    if (number === undefined) return undefined;
    const span = spans[Number(number)];
    if (span) return span;
    throw refuse(`has the input ${name}, and config.json says nothing of a span ${number}`);
  };
  const cache: CacheTensor[] = [];
  const biases: { input: string; span: HeadSpan }[] = [];
  for (const input of session.inputMetadata) {
    const { name } = input;
    if (plainInputs.has(name)) continue;
    const biased = numbered(name, spanOfBias);
    if (biased) {
      biases.push({ input: name, span: biased });
      continue;
    }
    const output = name.replace(/^past_key_values\./, "present.");
    if (!name.startsWith("past_key_values.") || !outputs.has(output))
      throw refuse(`has the input ${name.slice(0, 200)}`);
    const [, heads, , size] = input.isTensor ? input.shape : [];
    const type = input.isTensor ? input.type : undefined;
    if (typeof heads !== "number" || typeof size !== "number" || (type !== "float32" && type !== "float16")) {
      const shown = input.isTensor ? `${input.type} [${input.shape.join(", ")}]` : "no tensor";
      throw refuse(`has ${name} as ${shown}, expected float32 or float16 [batch, heads, past, size]`);
    }
    const span = numbered(name, spanOfCache);
    cache.push({
      input: name,
      output,
      type,
      heads,
      size,
      ...(span && { span }),
      layout: new CachePlaces(span),
    });
  }
  if (cache.length === 0) throw refuse("has no input past_key_values.*");
  return {
    cache,
    biases,
    newest: outputs.has(newest) && cache.every(({ type }) => type === "float32") ? newest : undefined,
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

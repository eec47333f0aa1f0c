import { parseSafetensors, serializeSafetensors, type TensorBytes } from "@coppice/checkpoint";
import { CoppiceError, isCoppiceError } from "@coppice/core";
import * as v from "valibot";
import { noExpert, type RoutingTrace, type TraceLayer, type TraceSequence } from "./routing-trace.js";

/** Version of the file that this package writes and reads. */
export const traceVersion = 1;

/** Limits of the parser; each exists so that a wrong or hostile file fails with a message, not with memory. */
export const traceLimits = {
  /** Bytes of a file: two million tokens of 58 layers with a top-k of 8 at one byte per choice. */
  fileBytes: 2 ** 30,
  /** Characters of the header's text; a layer takes some 60. */
  metadataChars: 2 ** 20,
  /** MoE layers, ten times those of the deepest known model. */
  layers: 1_000,
  /** Experts of a layer, eight times those of the widest known model. */
  experts: 4_096,
} as const;

const format = "coppice.trace";
/** In layers whose experts fit a byte, what `noExpert` is there. */
const noExpertByte = 0xff;

/**
 * A safetensors file: per MoE layer one tensor `layers.<index>.routes` [tokens, k], U8 where the layer has fewer than 256
 * experts and else U16, `sequences` [sequences, 2] U32 of prefill and decode tokens, and in `__metadata__` the format, its
 * version and the rest of the trace as JSON. Equal traces give equal bytes.
 */
export function encodeTrace(trace: RoutingTrace): Uint8Array {
  const { model, name, planned, otherBytes, tokenBytes, sequences, layers } = trace;
  const tensors = new Map<string, TensorBytes>();
  const counts = new DataView(new ArrayBuffer(8 * sequences.length));
  sequences.forEach(({ prefill, decode }, i) => {
    counts.setUint32(8 * i, prefill, true);
    counts.setUint32(8 * i + 4, decode, true);
  });
  tensors.set("sequences", {
    dtype: "U32",
    shape: [sequences.length, 2],
    bytes: new Uint8Array(counts.buffer),
  });
  for (const { layer, experts, topK, routes } of layers) {
    tensors.set(`layers.${layer}.routes`, {
      dtype: isNarrow(experts) ? "U8" : "U16",
      shape: [routes.length / topK, topK],
      bytes: isNarrow(experts) ? Uint8Array.from(routes, toByte) : wideBytes(routes),
    });
  }
  const header = {
    model,
    name,
    ...(planned && { planned }),
    otherBytes,
    tokenBytes,
    layers: layers.map(({ layer, experts, topK, expertBytes }) => ({ layer, experts, topK, expertBytes })),
  };
  const metadata = { format, version: String(traceVersion), trace: JSON.stringify(header) };
  return serializeSafetensors(tensors, new Map(Object.entries(metadata)));
}

const bytes = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const count = (most: number) => v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(most));
const schema = v.strictObject({
  model: v.pipe(v.string(), v.minLength(1)),
  name: v.string(),
  planned: v.exactOptional(v.literal(true)),
  otherBytes: bytes,
  tokenBytes: bytes,
  layers: v.pipe(
    v.array(
      v.strictObject({
        layer: bytes,
        experts: count(traceLimits.experts),
        topK: count(traceLimits.experts),
        expertBytes: bytes,
      }),
    ),
    v.minLength(1),
    v.maxLength(traceLimits.layers),
  ),
});

/**
 * The inverse of `encodeTrace`, for untrusted bytes.
 * @param file name for messages
 * @throws COPPICE_TRACE_FORMAT
 */
export async function decodeTrace(content: Uint8Array, file: string): Promise<RoutingTrace> {
  const fail = (message: string, cause?: unknown) =>
    new CoppiceError("COPPICE_TRACE_FORMAT", `${file} is not a usable routing trace: ${message}`, {
      hint: "record the trace again",
      ...(cause !== undefined && { cause }),
    });
  const { tensors, metadata } = await parseSafetensors(content, file).catch((error: unknown) => {
    throw isCoppiceError(error) ? fail(error.message, error) : error;
  });
  if (metadata.get("format") !== format) throw fail(`its format is not "${format}"`);
  if (metadata.get("version") !== String(traceVersion)) {
    throw fail(`its version is ${metadata.get("version")?.slice(0, 20)}, this release reads ${traceVersion}`);
  }
  const header = parseHeader(metadata.get("trace"), fail);
  if (tensors.size !== header.layers.length + 1) {
    throw fail(`it has ${tensors.size} tensors for ${header.layers.length} layers`);
  }
  const sequences = parseSequences(tensors.get("sequences"), fail);
  const tokens = sequences.reduce((sum, { prefill, decode }) => sum + prefill + decode, 0);
  return {
    ...header,
    sequences,
    layers: header.layers.map((layer, i): TraceLayer => {
      if (i > 0 && layer.layer <= (header.layers[i - 1]?.layer ?? 0)) throw fail("its layers do not ascend");
      const name = `layers.${layer.layer}.routes`;
      const tensor = tensors.get(name);
      const dtype = isNarrow(layer.experts) ? "U8" : "U16";
      if (tensor?.dtype !== dtype || tensor.shape.join() !== `${tokens},${layer.topK}`) {
        throw fail(`${name} is missing or not ${dtype} of shape [${tokens}, ${layer.topK}]`);
      }
      const routes = isNarrow(layer.experts)
        ? Uint16Array.from(tensor.bytes, fromByte)
        : wideRoutes(tensor.bytes);
      const bad = routes.find((expert) => expert !== noExpert && expert >= layer.experts);
      if (bad !== undefined) throw fail(`${name} names expert ${bad} of ${layer.experts}`);
      return { ...layer, routes };
    }),
  };
}

function parseHeader(text: string | undefined, fail: (message: string, cause?: unknown) => CoppiceError) {
  if (text === undefined || text.length > traceLimits.metadataChars) {
    throw fail(
      `its header has ${text?.length ?? "no"} characters, expected up to ${traceLimits.metadataChars}`,
    );
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw fail("its header is not JSON", cause);
  }
  const parsed = v.safeParse(schema, value, { abortEarly: true });
  if (parsed.success) return parsed.output;
  const [issue] = parsed.issues;
  throw fail(`${v.getDotPath(issue) ?? "the header"}: ${issue.message.slice(0, 200)}`);
}

function parseSequences(
  tensor: TensorBytes | undefined,
  fail: (message: string) => CoppiceError,
): TraceSequence[] {
  if (tensor?.dtype !== "U32" || tensor.shape.length !== 2 || tensor.shape[1] !== 2) {
    throw fail("sequences is missing or not U32 of shape [sequences, 2]");
  }
  const view = new DataView(tensor.bytes.buffer, tensor.bytes.byteOffset, tensor.bytes.length);
  const sequences = Array.from({ length: tensor.bytes.length / 8 }, (_, i) => ({
    prefill: view.getUint32(8 * i, true),
    decode: view.getUint32(8 * i + 4, true),
  }));
  if (sequences.length === 0) throw fail("it has no sequences");
  if (sequences.some(({ prefill, decode }) => prefill + decode === 0)) throw fail("a sequence has no tokens");
  return sequences;
}

function isNarrow(experts: number): boolean {
  return experts <= noExpertByte;
}

function toByte(expert: number): number {
  return expert === noExpert ? noExpertByte : expert;
}

function fromByte(byte: number): number {
  return byte === noExpertByte ? noExpert : byte;
}

// Through DataView, because files are little-endian whatever the machine is.
function wideBytes(routes: Uint16Array): Uint8Array {
  const view = new DataView(new ArrayBuffer(2 * routes.length));
  routes.forEach((expert, i) => {
    view.setUint16(2 * i, expert, true);
  });
  return new Uint8Array(view.buffer);
}

function wideRoutes(content: Uint8Array): Uint16Array {
  const view = new DataView(content.buffer, content.byteOffset, content.length);
  return Uint16Array.from({ length: content.length / 2 }, (_, i) => view.getUint16(2 * i, true));
}

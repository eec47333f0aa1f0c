import { parseSafetensors, serializeSafetensors, type TensorBytes } from "@coppice/checkpoint";
import { CoppiceError, isCoppiceError, type LayerStatistics, statisticsFields } from "@coppice/core";
import { type CollectedStatistics, emptyLayer, type StatisticsSource } from "./collected-statistics.js";

/** Version of the statistics file that this package writes and reads. */
export const statisticsVersion = 1;

const format = "coppice.statistics";

/** Longest `__metadata__` value that is parsed: some 50,000 sources. */
const metadataLimit = 16 * 2 ** 20;

/**
 * A safetensors file: per MoE layer and field one F64 tensor `layers.<index>.<field>` of shape [experts], and in
 * `__metadata__` the format, its version, the model's fingerprint and the sources. Equal statistics give equal bytes.
 */
export function encodeStatistics(statistics: CollectedStatistics): Uint8Array {
  const tensors = new Map<string, TensorBytes>();
  for (const layer of statistics.layers) {
    for (const field of statisticsFields) {
      tensors.set(tensorName(layer.layer, field), float64Tensor(layer[field]));
    }
  }
  const metadata = {
    format,
    version: String(statisticsVersion),
    model: statistics.model,
    tokens: String(statistics.tokens),
    sources: JSON.stringify(
      statistics.sources.map(({ name, hash, sequences, tokens }) => ({ name, hash, sequences, tokens })),
    ),
  };
  return serializeSafetensors(tensors, new Map(Object.entries(metadata)));
}

/**
 * The inverse of `encodeStatistics`, for untrusted bytes.
 * @param file name for messages
 * @throws COPPICE_STATS_FORMAT
 */
export async function decodeStatistics(bytes: Uint8Array, file: string): Promise<CollectedStatistics> {
  const fail = (message: string, cause?: unknown) =>
    new CoppiceError("COPPICE_STATS_FORMAT", `${file} is not a usable statistics file: ${message}`, {
      hint: "collect the statistics again",
      ...(cause !== undefined && { cause }),
    });
  const { tensors, metadata } = await parseSafetensors(bytes, file).catch((error: unknown) => {
    throw isCoppiceError(error) ? fail(error.message, error) : error;
  });
  if (metadata.get("format") !== format) {
    throw fail(`its format is ${show(metadata.get("format"))}, expected "${format}"`);
  }
  if (metadata.get("version") !== String(statisticsVersion)) {
    throw fail(
      `its version is ${show(metadata.get("version"))}, this release reads version ${statisticsVersion}`,
    );
  }
  const model = metadata.get("model");
  if (!model) throw fail("it names no model");
  const tokens = Number(metadata.get("tokens"));
  if (!isCount(tokens)) throw fail(`its tokens are ${show(metadata.get("tokens"))}, expected a count`);
  const sources = parseSources(metadata.get("sources"), fail);
  const counted = sources.reduce((sum, source) => sum + source.tokens, 0);
  if (counted !== tokens) throw fail(`it has ${tokens} tokens, its sources have ${counted}`);
  return { model, tokens, sources, layers: parseLayers(tensors, tokens, fail) };
}

type Fail = (message: string, cause?: unknown) => CoppiceError;

function parseLayers(
  tensors: ReadonlyMap<string, TensorBytes>,
  tokens: number,
  fail: Fail,
): LayerStatistics[] {
  const indices = [...tensors.keys()].flatMap((name) => {
    const [, index] = /^layers\.(0|[1-9]\d{0,5})\.count$/.exec(name) ?? [];
    return index === undefined ? [] : [Number(index)];
  });
  if (tensors.size !== indices.length * statisticsFields.length) {
    throw fail(
      `it has ${tensors.size} tensors for ${indices.length} layers of ${statisticsFields.length} fields`,
    );
  }
  return indices
    .sort((a, b) => a - b)
    .map((index) => {
      const experts = tensors.get(tensorName(index, "count"))?.shape[0] ?? 0;
      const layer = emptyLayer(index, experts);
      layer.tokens = tokens;
      for (const field of statisticsFields) {
        const name = tensorName(index, field);
        const tensor = tensors.get(name);
        if (tensor?.dtype !== "F64" || tensor.shape.length !== 1 || tensor.shape[0] !== experts || !experts) {
          throw fail(`${name} is ${describe(tensor)}, expected F64 of one value per expert`);
        }
        const values = float64Values(tensor.bytes);
        const bad = values.findIndex((value) => !(value >= 0) || value === Number.POSITIVE_INFINITY);
        if (bad >= 0) throw fail(`${name}[${bad}] is ${values[bad]}, expected a finite sum of at least 0`);
        layer[field].set(values);
      }
      const bad = layer.count.findIndex((count) => !isCount(count) || count > tokens);
      if (bad >= 0) {
        throw fail(`expert ${bad} of layer ${index} served ${layer.count[bad]} of ${tokens} tokens`);
      }
      return layer;
    });
}

function parseSources(text: string | undefined, fail: Fail): StatisticsSource[] {
  if (text === undefined || text.length > metadataLimit) {
    throw fail(`its sources have ${text?.length ?? "no"} characters, expected up to ${metadataLimit}`);
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw fail("its sources are not JSON", cause);
  }
  if (!Array.isArray(parsed) || parsed.length === 0) throw fail("its sources are no list");
  return parsed.map((entry: unknown, i) => {
    const { name, hash, sequences, tokens } = (entry ?? {}) as Record<string, unknown>;
    if (typeof name !== "string" || typeof hash !== "string" || !isCount(sequences) || !isCount(tokens)) {
      throw fail(`source ${i} is ${show(entry)}, expected name, hash, sequences and tokens`);
    }
    return { name, hash, sequences, tokens };
  });
}

function tensorName(layer: number, field: string): string {
  return `layers.${layer}.${field}`;
}

// Through DataView, because files are little-endian whatever the machine is.
function float64Tensor(values: Float64Array): TensorBytes {
  const view = new DataView(new ArrayBuffer(values.length * 8));
  values.forEach((value, i) => {
    view.setFloat64(i * 8, value, true);
  });
  return { dtype: "F64", shape: [values.length], bytes: new Uint8Array(view.buffer) };
}

function float64Values(bytes: Uint8Array): Float64Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Float64Array.from({ length: bytes.length / 8 }, (_, i) => view.getFloat64(i * 8, true));
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function describe(tensor: TensorBytes | undefined): string {
  return tensor ? `${tensor.dtype} of shape [${tensor.shape.join(", ")}]` : "missing";
}

function show(value: unknown): string {
  return (JSON.stringify(value) ?? String(value)).slice(0, 80);
}

import { parseSafetensors, serializeSafetensors, type TensorBytes } from "@coppice/checkpoint";
import {
  CoppiceError,
  type ExtraField,
  extraFields,
  isCoppiceError,
  type LayerStatistics,
  type StatisticsField,
  statisticsFields,
  statisticsShape,
} from "@coppice/core";
import { type CollectedStatistics, emptyLayer, sizesOf } from "./collected-statistics.js";
import { encodeSources, isCount, parseSources, show } from "./source-record.js";

/** Version of the statistics file that this package writes and reads. Version 1 had fewer sums. */
export const statisticsVersion = 2;

const format = "coppice.statistics";

/**
 * A safetensors file: per MoE layer and field one F64 tensor `layers.<index>.<field>` of the shape that
 * `statisticsShape` gives, and in `__metadata__` the format, its version, the model's fingerprint and the sources. Equal
 * statistics give equal bytes.
 */
export function encodeStatistics(statistics: CollectedStatistics): Uint8Array {
  const tensors = new Map<string, TensorBytes>();
  for (const layer of statistics.layers) {
    const sizes = sizesOf(layer);
    for (const field of [...statisticsFields, ...extraFields]) {
      const sums = layer[field];
      if (!sums) continue;
      const shape = statisticsShape(field, sizes);
      tensors.set(tensorName(layer.layer, field), float64Tensor(sums, shape));
    }
  }
  const metadata = {
    format,
    version: String(statisticsVersion),
    model: statistics.model,
    tokens: String(statistics.tokens),
    sources: encodeSources(statistics.sources),
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
  const sources = parseSources(metadata.get("sources"), fail);
  const scaled = sources.some(({ weight }) => weight !== 1);
  const tokens = Number(metadata.get("tokens"));
  if (scaled ? !(tokens > 0 && tokens < Number.POSITIVE_INFINITY) : !isCount(tokens)) {
    throw fail(`its tokens are ${show(metadata.get("tokens"))}, expected a count`);
  }
  const counted = sources.reduce((sum, source) => sum + source.tokens * source.weight, 0);
  if (scaled ? Math.abs(counted - tokens) > slack * counted : counted !== tokens) {
    throw fail(`it has ${tokens} tokens, its sources have ${counted}`);
  }
  return { model, tokens, sources, layers: parseLayers(tensors, { tokens, scaled }, fail) };
}

/** What rounding may make of a count that was scaled, relatively. */
const slack = 1e-9;

type Fail = (message: string, cause?: unknown) => CoppiceError;

interface Counting {
  readonly tokens: number;
  /** True when tokens do not all count 1, so that counts need not be whole. */
  readonly scaled: boolean;
}

function parseLayers(
  tensors: ReadonlyMap<string, TensorBytes>,
  counting: Counting,
  fail: Fail,
): LayerStatistics[] {
  const indices = [...tensors.keys()].flatMap((name) => {
    const [, index] = /^layers\.(0|[1-9]\d{0,5})\.count$/.exec(name) ?? [];
    return index === undefined ? [] : [Number(index)];
  });
  indices.sort((a, b) => a - b);
  const extras = extraFields.filter((field) => tensors.has(tensorName(indices[0] ?? 0, field)));
  const fields = [...statisticsFields, ...extras];
  if (tensors.size !== indices.length * fields.length) {
    throw fail(`it has ${tensors.size} tensors for ${indices.length} layers of ${fields.length} fields`);
  }
  return indices.map((index) => {
    const experts = tensors.get(tensorName(index, "count"))?.shape[0] ?? 0;
    const columns = (field: ExtraField) => tensors.get(tensorName(index, field))?.shape[1];
    const sizes = {
      experts,
      hidden: columns("outputSum") ?? columns("everyOutputSum") ?? 0,
      width: columns("unitSquares") ?? 0,
    };
    const read = (field: StatisticsField | ExtraField): Float64Array => {
      const name = tensorName(index, field);
      const tensor = tensors.get(name);
      const shape = statisticsShape(field, sizes);
      if (tensor?.dtype !== "F64" || tensor.shape.join() !== shape.join() || !experts) {
        throw fail(`${name} is ${describe(tensor)}, expected F64 of shape [${shape.join(", ")}]`);
      }
      return float64Values(tensor.bytes);
    };
    // Checked before anything is allocated by the number of experts that the file claims.
    const values = new Map(fields.map((field) => [field, read(field)]));
    const layer = emptyLayer(index, sizes, extras);
    layer.tokens = counting.tokens;
    for (const [field, sums] of values) layer[field]?.set(sums);
    checkLayer(layer, counting, fail);
    return layer;
  });
}

/** Sums of logits and outputs may be negative; the others are sums of what is not. */
const signedFields: ReadonlySet<StatisticsField | ExtraField> = new Set([
  "topLogit",
  "routedLogit",
  "logitGram",
  "outputSum",
]);

function checkLayer(layer: LayerStatistics, { tokens, scaled }: Counting, fail: Fail): void {
  for (const field of [...statisticsFields, ...extraFields]) {
    const least = signedFields.has(field) ? -Number.MAX_VALUE : 0;
    const values = layer[field] ?? new Float64Array(0);
    const bad = values.findIndex((value) => !(value >= least && value <= Number.MAX_VALUE));
    if (bad < 0) continue;
    const expected = least === 0 ? "a finite sum of at least 0" : "a finite sum";
    throw fail(`${tensorName(layer.layer, field)}[${bad}] is ${values[bad]}, expected ${expected}`);
  }
  const bad = layer.count.findIndex((count) =>
    scaled ? count > tokens * (1 + slack) : !isCount(count) || count > tokens,
  );
  if (bad >= 0) {
    throw fail(`expert ${bad} of layer ${layer.layer} served ${layer.count[bad]} of ${tokens} tokens`);
  }
  const experts = layer.count.length;
  const skew = layer.logitGram.findIndex((value, at) => {
    const mirrored = (at % experts) * experts + Math.floor(at / experts);
    return value !== layer.logitGram[mirrored];
  });
  if (skew >= 0) throw fail(`${tensorName(layer.layer, "logitGram")} is not symmetric`);
}

function tensorName(layer: number, field: string): string {
  return `layers.${layer}.${field}`;
}

// Through DataView, because files are little-endian whatever the machine is.
function float64Tensor(values: Float64Array, shape: number[]): TensorBytes {
  const view = new DataView(new ArrayBuffer(values.length * 8));
  values.forEach((value, i) => {
    view.setFloat64(i * 8, value, true);
  });
  return { dtype: "F64", shape, bytes: new Uint8Array(view.buffer) };
}

function float64Values(bytes: Uint8Array): Float64Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Float64Array.from({ length: bytes.length / 8 }, (_, i) => view.getFloat64(i * 8, true));
}

function describe(tensor: TensorBytes | undefined): string {
  return tensor ? `${tensor.dtype} of shape [${tensor.shape.join(", ")}]` : "missing";
}

import { parseSafetensors, serializeSafetensors, type TensorBytes } from "@coppice/checkpoint";
import {
  CoppiceError,
  type ExtraField,
  extraFields,
  isCoppiceError,
  type LayerSample,
  type LayerSizes,
  type LayerStatistics,
  type SampleField,
  type StatisticsField,
  sampleFields,
  sampleShape,
  statisticsFields,
  statisticsShape,
  type TokenSample,
} from "@coppice/core";
import { type CollectedStatistics, sizesOf } from "./collected-statistics.js";
import { decodeFloats, encodeFloats } from "./float-tensors.js";
import { encodeSources, isCount, parseSources, show } from "./source-record.js";

/** Version of the statistics file that this package writes. */
export const statisticsVersion = 3;

/** Versions that it reads: 2 is 3 without samples; 1 had fewer sums. */
const readVersions: readonly (string | undefined)[] = ["2", "3"];

const format = "coppice.statistics";

const prioritiesName = "sample.priorities";

/**
 * A safetensors file: per MoE layer and field one F64 tensor `layers.<index>.<field>` of the shape that
 * `statisticsShape` gives, and in `__metadata__` the format, its version, the model's fingerprint and the sources. With
 * a sample also F64 `sample.priorities` [S], per layer and field one F32 tensor `layers.<index>.sample.<field>` of the
 * shape that `sampleShape` gives, and `sampleLimit`. Equal statistics give equal bytes.
 */
export function encodeStatistics(statistics: CollectedStatistics): Uint8Array {
  const tensors = new Map<string, TensorBytes>();
  const { sample } = statistics;
  if (sample) {
    tensors.set(prioritiesName, encodeFloats("F64", sample.priorities, [sample.priorities.length]));
  }
  for (const layer of statistics.layers) {
    const sizes = sizesOf(layer);
    for (const field of [...statisticsFields, ...extraFields]) {
      const sums = layer[field];
      if (!sums) continue;
      const shape = statisticsShape(field, sizes);
      tensors.set(tensorName(layer.layer, field), encodeFloats("F64", sums, shape));
    }
    for (const field of sampleFields) {
      const values = layer.sample?.[field];
      if (!values || !sample) continue;
      const shape = sampleShape(field, sample.priorities.length, sizes);
      tensors.set(sampleName(layer.layer, field), encodeFloats("F32", values, shape));
    }
  }
  const metadata = {
    format,
    version: String(statisticsVersion),
    model: statistics.model,
    tokens: String(statistics.tokens),
    sources: encodeSources(statistics.sources),
    ...(sample && { sampleLimit: String(sample.limit) }),
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
  if (!readVersions.includes(metadata.get("version"))) {
    throw fail(
      `its version is ${show(metadata.get("version"))}, this release reads the versions ${readVersions.join(" and ")}`,
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
  const all = sources.reduce((sum, source) => sum + source.tokens, 0);
  const sample = parseSample(tensors.get(prioritiesName), metadata.get("sampleLimit"), all, fail);
  const layers = parseLayers(tensors, { tokens, scaled }, sample, fail);
  return { model, tokens, sources, layers, ...(sample && { sample }) };
}

/** What rounding may make of a count that was scaled, relatively. */
const slack = 1e-9;

type Fail = (message: string, cause?: unknown) => CoppiceError;

interface Counting {
  readonly tokens: number;
  /** True when tokens do not all count 1, so that counts need not be whole. */
  readonly scaled: boolean;
}

function parseSample(
  tensor: TensorBytes | undefined,
  limitText: string | undefined,
  tokens: number,
  fail: Fail,
): TokenSample | undefined {
  if (tensor === undefined && limitText === undefined) return undefined;
  const limit = Number(limitText);
  if (!isCount(limit) || limit < 1) throw fail(`its sample's limit is ${show(limitText)}, expected a count`);
  const size = Math.min(limit, tokens);
  if (tensor?.dtype !== "F64" || tensor.shape.join() !== String(size)) {
    throw fail(`${prioritiesName} is ${describe(tensor)}, expected F64 of shape [${size}]`);
  }
  const priorities = decodeFloats("F64", tensor);
  const bad = priorities.findIndex(
    (value, i) => !(value > 0 && value >= (priorities[i - 1] ?? 0) && value <= Number.MAX_VALUE),
  );
  if (bad >= 0)
    throw fail(`${prioritiesName}[${bad}] is ${priorities[bad]}, expected ascending numbers above 0`);
  return { limit, priorities };
}

function parseLayers(
  tensors: ReadonlyMap<string, TensorBytes>,
  counting: Counting,
  sample: TokenSample | undefined,
  fail: Fail,
): LayerStatistics[] {
  const indices = [...tensors.keys()].flatMap((name) => {
    const [, index] = /^layers\.(0|[1-9]\d{0,5})\.count$/.exec(name) ?? [];
    return index === undefined ? [] : [Number(index)];
  });
  indices.sort((a, b) => a - b);
  const first = indices[0] ?? 0;
  const extras = extraFields.filter((field) => tensors.has(tensorName(first, field)));
  const sampled = sample
    ? sampleFields.filter((field) => field === "logits" || tensors.has(sampleName(first, field)))
    : [];
  const fields = [...statisticsFields, ...extras];
  const expected = indices.length * (fields.length + sampled.length) + (sample ? 1 : 0);
  if (tensors.size !== expected) {
    throw fail(`it has ${tensors.size} tensors, expected ${expected} for ${indices.length} layers`);
  }
  return indices.map((index) => {
    const sizes = layerSizesIn(tensors, index);
    const read = <D extends "F64" | "F32">(name: string, dtype: D, shape: readonly number[]) => {
      const tensor = tensors.get(name);
      if (tensor?.dtype !== dtype || tensor.shape.join() !== shape.join() || shape.slice(1).includes(0)) {
        throw fail(`${name} is ${describe(tensor)}, expected ${dtype} of shape [${shape.join(", ")}]`);
      }
      return decodeFloats(dtype, tensor);
    };
    if (!sizes.experts) throw fail(`layer ${index} has no experts`);
    const sums = fields.map((field) => [
      field,
      read(tensorName(index, field), "F64", statisticsShape(field, sizes)),
    ]);
    const size = sample?.priorities.length ?? 0;
    const rows = sampled.map((field) => [
      field,
      read(sampleName(index, field), "F32", sampleShape(field, size, sizes)),
    ]);
    const layer: LayerStatistics = {
      layer: index,
      tokens: counting.tokens,
      ...(Object.fromEntries(sums) as Record<StatisticsField, Float64Array>),
      ...(sample && { sample: Object.fromEntries(rows) as LayerSample }),
    };
    checkLayer(layer, counting, fail);
    return layer;
  });
}

/** Sizes as the shapes of a layer's tensors claim them; each tensor is compared with them afterwards. */
function layerSizesIn(tensors: ReadonlyMap<string, TensorBytes>, index: number): LayerSizes {
  const shapeOf = (name: string) => tensors.get(name)?.shape ?? [];
  const column = (field: ExtraField) => shapeOf(tensorName(index, field))[1];
  return {
    experts: shapeOf(tensorName(index, "count"))[0] ?? 0,
    hidden: column("outputSum") ?? column("everyOutputSum") ?? shapeOf(sampleName(index, "inputs"))[1] ?? 0,
    width: column("unitSquares") ?? shapeOf(sampleName(index, "units"))[2] ?? 0,
  };
}

/** Sums of logits and outputs may be negative; the others are sums of what is not. */
const signedFields: ReadonlySet<StatisticsField | ExtraField> = new Set([
  "topLogit",
  "routedLogit",
  "logitGram",
  "outputSum",
  "everyOutputSum",
  "outputGram",
  "outputCosine",
]);

const symmetricFields = ["logitGram", "outputGram", "outputCosine"] as const;

function checkLayer(layer: LayerStatistics, { tokens, scaled }: Counting, fail: Fail): void {
  for (const field of [...statisticsFields, ...extraFields]) {
    const least = signedFields.has(field) ? -Number.MAX_VALUE : 0;
    const values = layer[field] ?? new Float64Array(0);
    const bad = values.findIndex((value) => !(value >= least && value <= Number.MAX_VALUE));
    if (bad < 0) continue;
    const expected = least === 0 ? "a finite sum of at least 0" : "a finite sum";
    throw fail(`${tensorName(layer.layer, field)}[${bad}] is ${values[bad]}, expected ${expected}`);
  }
  const uncounted = layer.count.findIndex((count) =>
    scaled ? count > tokens * (1 + slack) : !isCount(count) || count > tokens,
  );
  if (uncounted >= 0) {
    throw fail(
      `expert ${uncounted} of layer ${layer.layer} served ${layer.count[uncounted]} of ${tokens} tokens`,
    );
  }
  const experts = layer.count.length;
  for (const field of symmetricFields) {
    if (layer[field] && !isSymmetric(layer[field], experts)) {
      throw fail(`${tensorName(layer.layer, field)} is not symmetric`);
    }
  }
  for (const field of sampleFields) {
    const values = layer.sample?.[field];
    const wrong = values?.findIndex((value) => !Number.isFinite(value)) ?? -1;
    if (wrong < 0) continue;
    throw fail(`${sampleName(layer.layer, field)}[${wrong}] is ${values?.[wrong]}, expected a finite number`);
  }
  const { grams } = layer.sample ?? {};
  for (let at = 0; grams && at < grams.length; at += experts ** 2) {
    if (isSymmetric(grams.subarray(at, at + experts ** 2), experts)) continue;
    throw fail(`${sampleName(layer.layer, "grams")} has one that is not symmetric`);
  }
}

function isSymmetric(values: Float64Array | Float32Array, size: number): boolean {
  for (let i = 0; i < size; i++) {
    for (let j = i + 1; j < size; j++) if (values[i * size + j] !== values[j * size + i]) return false;
  }
  return true;
}

function tensorName(layer: number, field: string): string {
  return `layers.${layer}.${field}`;
}

function sampleName(layer: number, field: SampleField): string {
  return tensorName(layer, `sample.${field}`);
}

function describe(tensor: TensorBytes | undefined): string {
  return tensor ? `${tensor.dtype} of shape [${tensor.shape.join(", ")}]` : "missing";
}

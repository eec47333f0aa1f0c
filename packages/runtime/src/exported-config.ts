import { CoppiceError, type HeadSpan } from "@coppice/core";
import type { SamplingOptions } from "@coppice/evaluate";
import * as v from "valibot";
import { type ExportedFolder, missingFile } from "./exported-folder.js";

/** Bytes of config.json or generation_config.json; published ones have a few thousand. */
const configBytes = 16_000_000;
/** External data files of one graph: 2 GB each, so that this is far beyond what fits into memory. */
const dataFiles = 1000;

/** What an exported folder says about its model besides the graph. */
export interface ExportedConfig {
  /** Most tokens that the model can look back on. */
  readonly contextLength: number;
  readonly vocabSize: number;
  /** Tokens that end a text. */
  readonly endTokens: readonly number[];
  /** How generation_config.json asks to sample; what it does not name is left out. */
  readonly sampling: SamplingOptions;
  /** The weights that the exporter named, such as "q4"; see `graphFileName`. */
  readonly dtype: string | undefined;
  /** `coppice export` wrote the graphs, so that more is known of them than the names of their inputs. */
  readonly isCoppiceExport: boolean;
  /** A run of one token need not give what is present: a negative `num_logits_to_keep` says that nobody wants it. */
  readonly sparesPresent: boolean;
  /** Spans that heads of the graph have, by the numbers in the names of its inputs. */
  readonly spans: readonly HeadSpan[];
  /** External data files of the graph `model<suffix>.onnx`. */
  externalData(graph: string): string[];
}

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(1));
const tokenIds = v.union([v.number(), v.array(v.number())]);
const fileCount = v.union([
  v.boolean(),
  v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(dataFiles)),
]);

const headSpan = v.object({ sinks: v.pipe(v.number(), v.safeInteger(), v.minValue(0)), window: count });

const configSchema = v.looseObject({
  vocab_size: count,
  max_position_embeddings: count,
  eos_token_id: v.nullish(tokenIds),
  // The section of this project.
  coppice_export: v.optional(
    v.looseObject({
      spares_present: v.optional(v.boolean()),
      attention: v.optional(v.looseObject({ spans: v.array(headSpan) })),
    }),
  ),
  // The section that transformers.js reads.
  "transformers.js_config": v.optional(
    v.looseObject({
      dtype: v.optional(v.union([v.string(), v.record(v.string(), v.string())])),
      use_external_data_format: v.optional(v.union([fileCount, v.record(v.string(), fileCount)])),
    }),
  ),
});

const generationSchema = v.looseObject({
  eos_token_id: v.nullish(tokenIds),
  temperature: v.nullish(v.number()),
  top_k: v.nullish(v.number()),
  top_p: v.nullish(v.number()),
  min_p: v.nullish(v.number()),
  repetition_penalty: v.nullish(v.number()),
});

/** @throws COPPICE_FORMAT_MISSING_FILE, COPPICE_FORMAT_CONFIG, COPPICE_FORMAT_LIMIT */
export async function readExportedConfig(folder: ExportedFolder): Promise<ExportedConfig> {
  const config = await readJson(folder, "config.json", configSchema);
  if (!config) throw missingFile("config.json", folder.label);
  const generation = await readJson(folder, "generation_config.json", generationSchema);
  const { dtype, use_external_data_format: format } = config["transformers.js_config"] ?? {};
  const ends = generation?.eos_token_id ?? config.eos_token_id ?? [];
  return {
    contextLength: config.max_position_embeddings,
    vocabSize: config.vocab_size,
    endTokens: typeof ends === "number" ? [ends] : ends,
    sampling: samplingOf(generation ?? {}),
    dtype: typeof dtype === "string" ? dtype : dtype?.["model"],
    isCoppiceExport: config.coppice_export !== undefined,
    sparesPresent: config.coppice_export?.spares_present ?? false,
    spans: config.coppice_export?.attention?.spans ?? [],
    externalData(graph) {
      const files = typeof format === "object" ? (format[graph] ?? format["model"]) : format;
      return Array.from({ length: Number(files ?? 0) }, (_, i) => `${graph}_data${i === 0 ? "" : `_${i}`}`);
    },
  };
}

/** Values that transformers treats as "off" are left out, such as a top-k of 0. */
function samplingOf(generation: v.InferOutput<typeof generationSchema>): SamplingOptions {
  const { temperature, top_k, top_p, min_p, repetition_penalty } = generation;
  return {
    ...(typeof temperature === "number" && { temperature }),
    ...(typeof top_k === "number" && top_k > 0 && { topK: top_k }),
    ...(typeof top_p === "number" && { topP: top_p }),
    ...(typeof min_p === "number" && { minP: min_p }),
    ...(typeof repetition_penalty === "number" && { repetitionPenalty: repetition_penalty }),
  };
}

async function readJson<S extends v.GenericSchema>(
  folder: ExportedFolder,
  name: string,
  schema: S,
): Promise<v.InferOutput<S> | undefined> {
  const text = await folder.text(name, configBytes);
  if (text === undefined) return undefined;
  const refuse = (why: string, cause?: unknown) =>
    new CoppiceError("COPPICE_FORMAT_CONFIG", `${name} in ${folder.label} ${why}`, {
      details: { file: name },
      ...(cause !== undefined && { cause }),
    });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw refuse(`is not valid JSON: ${(cause as Error).message.slice(0, 200)}`, cause);
  }
  const result = v.safeParse(schema, value);
  if (result.success) return result.output;
  const [issue] = result.issues;
  throw refuse(`is not usable: ${v.getDotPath(issue) ?? "its top"}: ${issue.message}`);
}

/** Endings of graph files by the names that transformers.js has for weights. */
const suffixes: Readonly<Record<string, string>> = {
  fp32: "",
  fp16: "_fp16",
  int8: "_int8",
  uint8: "_uint8",
  q8: "_quantized",
  q4: "_q4",
  q2: "_q2",
  q4f16: "_q4f16",
  q2f16: "_q2f16",
  bnb4: "_bnb4",
};

/**
 * The graph to load: that of `dtype` (by default the one that config.json names), else the only one that there is.
 * @throws COPPICE_USAGE for a dtype that does not exist, or when several graphs are there and none is named;
 * COPPICE_FORMAT_MISSING_FILE
 */
export async function graphFileName(
  folder: ExportedFolder,
  config: ExportedConfig,
  dtype: string | undefined,
): Promise<string> {
  const wanted = dtype ?? config.dtype;
  const listed = (await folder.list())?.filter((name) => name.endsWith(".onnx")).sort();
  const there = listed?.join(", ") || "none";
  if (wanted !== undefined) {
    const suffix = Object.hasOwn(suffixes, wanted) ? suffixes[wanted] : undefined;
    if (suffix === undefined) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `dtype is ${JSON.stringify(wanted.slice(0, 40))}, expected one of ${Object.keys(suffixes).join(", ")}`,
      );
    }
    const name = `model${suffix}.onnx`;
    if (!listed || listed.includes(name)) return name;
    // What config.json names is only a preference; what the caller names is not.
    if (dtype !== undefined || listed.length !== 1) {
      throw new CoppiceError(
        dtype === undefined ? "COPPICE_FORMAT_MISSING_FILE" : "COPPICE_USAGE",
        `onnx/${name} is not in ${folder.label}; the graphs there: ${there}`,
      );
    }
  }
  if (!listed) return "model.onnx";
  const [only] = listed;
  if (only === undefined) throw missingFile("onnx/model.onnx", folder.label);
  if (listed.length > 1) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `${folder.label} holds ${listed.length} graphs (${there}) and config.json names none`,
      { hint: "choose one by its dtype, such as fp32 or q4" },
    );
  }
  return only;
}

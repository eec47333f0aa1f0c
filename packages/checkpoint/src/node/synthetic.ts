import { CoppiceError, type DType, dtypeBytes, elementCount, Rng, roundToDtype } from "@coppice/core";
import { encodeValues } from "../decode.js";
import { families } from "../families/families.js";
import type { FamilyDescription } from "../families/family.js";
import type { JsonObject } from "../json-object.js";
import { bytesContent, type Content, repeatedContent } from "../output/content.js";
import { defaultShardBytes, type OutputTensor, packShards } from "../output/shards.js";
import type { CheckpointTarget } from "../output/target.js";
import { type OutputFile, outputFile, type WriteOptions, writeFiles } from "../output/write-files.js";
import { folderTarget } from "./folder-target.js";
import { type SyntheticShape, syntheticShapes } from "./synthetic-shapes.js";

/** Sizes of a made-up model. */
export interface SyntheticOptions {
  /** Name of a family that is executed. */
  readonly family: string;
  readonly layers: number;
  readonly hiddenSize: number;
  readonly vocabSize: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Default: hiddenSize / heads. */
  readonly headDim?: number;
  readonly experts: number;
  readonly topK: number;
  readonly expertWidth: number;
  /** Default false. */
  readonly tied?: boolean;
  /** Expert tensors stacked, as transformers 5 holds them in memory; default: the family's usual layout. */
  readonly fused?: boolean;
  /** Default BF16. */
  readonly dtype?: Extract<DType, "F32" | "F16" | "BF16">;
  /**
   * `fp8`: linear layers in F8_E4M3 with a scale for every block of 128 x 128, as DeepSeek-V3 has them; `mxfp4`: stacked
   * experts as GPT-OSS has them. Default: not quantized.
   */
  readonly quantized?: "fp8" | "mxfp4";
  /** Further keys of config.json, which replace those made from these options. */
  readonly config?: JsonObject;
  readonly seed?: number;
  readonly maxShardBytes?: number;
}

/**
 * Writes an untrained checkpoint of any size in seconds, to try tools on: tensors are windows at random places of one
 * block of random normal values with standard deviation 0.02 (1 plus them for norms), so that none equals another, and
 * any size needs 16 MB. Equal options give equal bytes.
 * @param target folder to create, or any target
 * @throws COPPICE_IO_EXISTS, COPPICE_IO_NO_SPACE, COPPICE_IO_WRITE, COPPICE_ABORTED
 */
export async function writeSyntheticCheckpoint(
  target: string | CheckpointTarget,
  options: SyntheticOptions & WriteOptions,
): Promise<void> {
  const files = syntheticFiles(options);
  await writeFiles(files, typeof target === "string" ? folderTarget(target) : target, options);
}

function syntheticFiles(options: SyntheticOptions): OutputFile[] {
  const family = families.find(({ name }) => name === options.family);
  if (!family) throw new CoppiceError("COPPICE_USAGE", `there is no family "${options.family}"`);
  const config = syntheticConfig(family, options);
  const text = new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`);
  return [
    ...packShards(syntheticTensors(family, config, options), options.maxShardBytes ?? defaultShardBytes),
    outputFile("config.json", [bytesContent(text)]),
  ];
}

function syntheticConfig(family: FamilyDescription, options: SyntheticOptions): JsonObject {
  const { headDim = options.hiddenSize / options.heads, quantized } = options;
  const { experts, topK, expertWidth } = family.config;
  return {
    model_type: family.name,
    hidden_size: options.hiddenSize,
    intermediate_size: options.expertWidth,
    num_hidden_layers: options.layers,
    num_attention_heads: options.heads,
    num_key_value_heads: options.kvHeads,
    head_dim: headDim,
    vocab_size: options.vocabSize,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    hidden_act: "silu",
    norm_topk_prob: true,
    tie_word_embeddings: options.tied ?? false,
    eos_token_id: 0,
    ...Object.fromEntries([
      [experts[0], options.experts],
      [topK[0], options.topK],
      [expertWidth[0], options.expertWidth],
    ]),
    ...(quantized && {
      quantization_config: {
        quant_method: quantized,
        ...(quantized === "fp8" && { weight_block_size: [scaleBlock, scaleBlock] }),
      },
    }),
    ...options.config,
  };
}

function syntheticTensors(
  family: FamilyDescription,
  config: JsonObject,
  { fused, dtype = "BF16", seed = 0, quantized }: SyntheticOptions,
): OutputTensor[] {
  const layout = family.layouts.find(
    ({ kind }) => fused === undefined || kind === (fused ? "fused" : "separate"),
  );
  if (!layout) {
    throw new CoppiceError("COPPICE_USAGE", `${family.name} has no ${fused ? "fused" : "separate"} layout`);
  }
  const shapes = syntheticShapes(family, layout, config);
  const parameters = shapes.reduce((sum, { shape }) => sum + elementCount(shape), 0);
  const rng = Rng.fromSeed(seed);
  const block = new RandomBlock(dtype, parameters, rng);
  const isCodes = ({ kind }: SyntheticShape) => quantized === "fp8" && kind === "matrix";
  const codes = shapes.some(isCodes) ? new RandomBlock("F8_E4M3", parameters, rng) : block;
  return shapes.flatMap((one): OutputTensor[] => {
    const { name, shape, kind } = one;
    if (isCodes(one)) return float8Tensors(name, shape, codes);
    if (quantized === "mxfp4" && kind === "stack") return float4Tensors(one, block);
    return [{ name, dtype, shape, contents: [block.tensor(elementCount(shape), kind === "norm")] }];
  });
}

const scaleBlock = 128;

function float8Tensors(name: string, shape: readonly number[], codes: RandomBlock): OutputTensor[] {
  const scales = shape.map((size) => Math.ceil(size / scaleBlock));
  const factor = new Uint8Array(Float32Array.of(0.02).buffer);
  const bytes = 4 * elementCount(scales);
  return [
    { name, dtype: "F8_E4M3", shape, contents: [codes.tensor(elementCount(shape), false)] },
    {
      name: `${name}_scale_inv`,
      dtype: "F32",
      shape: scales,
      contents: [repeatedContent(factor, bytes)],
    },
  ];
}

/** MXFP4 has its rows by outputs, whichever way the layout turns unquantized stacks. */
function float4Tensors({ name, shape, turned }: SyntheticShape, bits: RandomBlock): OutputTensor[] {
  const [experts, a, b] = shape as [number, number, number];
  const [rows, columns] = turned ? [b, a] : [a, b];
  if (columns % 32 !== 0) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `MXFP4 needs ${columns} inputs of ${name} to be a multiple of 32`,
    );
  }
  const scales = [experts, rows, columns / 32];
  // Every nibble is a value of FP4, so any bytes will do.
  const blocks = bits.content((experts * rows * columns) / 2, false);
  return [
    { name: `${name}_blocks`, dtype: "U8", shape: [...scales, 16], contents: [blocks] },
    {
      name: `${name}_scales`,
      dtype: "U8",
      shape: scales,
      // 2^-7: values of up to 0.05.
      contents: [repeatedContent(Uint8Array.of(120), elementCount(scales))],
    },
  ];
}

/** Random values of a block, prime numbers, so that windows of sizes with common factors do not line up. */
const smallBlock = 65_521;
const largeBlock = 4_194_301;
/** Parameters up to which the small block is random enough, and made in no time. */
const smallModel = 1_000_000;

class RandomBlock {
  readonly #rng: Rng;
  readonly #width: number;
  readonly #length: number;
  readonly #weights: Uint8Array;
  readonly #norms: Uint8Array;

  constructor(dtype: DType, parameters: number, rng: Rng) {
    this.#rng = rng;
    this.#width = dtypeBytes[dtype];
    this.#length = parameters > smallModel ? largeBlock : smallBlock;
    // Codes of F8 are multiplied by scales.
    const deviation = dtype === "F8_E4M3" ? 1 : 0.02;
    const values = Float32Array.from({ length: this.#length }, () => deviation * this.#rng.normal());

    this.#norms = encoded(
      dtype,
      values.map((value) => 1 + value),
    );
    this.#weights = encoded(dtype, values);
  }

  tensor(count: number, isNorm: boolean): Content {
    return this.content(count * this.#width, isNorm);
  }

  content(bytes: number, isNorm: boolean): Content {
    const block = isNorm ? this.#norms : this.#weights;
    const start = this.#rng.integer(this.#length) * this.#width;
    return {
      bytes,
      fill: async (offset, into) => {
        for (let at = 0; at < into.length; ) {
          const from = (start + offset + at) % block.length;
          const part = block.subarray(from, from + into.length - at);
          into.set(part, at);
          at += part.length;
        }
      },
    };
  }
}

function encoded(dtype: DType, values: Float32Array): Uint8Array {
  roundToDtype(values, dtype);
  const bytes = new Uint8Array(values.length * dtypeBytes[dtype]);
  encodeValues(dtype, values, bytes);
  return bytes;
}

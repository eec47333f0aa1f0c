import { CoppiceError, type DType, dtypeBytes, elementCount, Rng, roundToDtype } from "@coppice/core";
import { encodeValues } from "../decode.js";
import { families } from "../families/families.js";
import type { FamilyDescription, MlpNames } from "../families/family.js";
import { fillIn } from "../families/naming.js";
import { bytesContent, type Content } from "../output/content.js";
import { defaultShardBytes, type OutputTensor, packShards } from "../output/shards.js";
import type { CheckpointTarget } from "../output/target.js";
import { type OutputFile, outputFile, type WriteOptions, writeFiles } from "../output/write-files.js";
import { folderTarget } from "./folder-target.js";

/** Sizes of a made-up model. */
export interface SyntheticOptions {
  readonly family: "mixtral" | "qwen3_moe";
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
  /** Expert tensors stacked, as transformers 5 holds them in memory; default false, one tensor each. */
  readonly fused?: boolean;
  /** Default BF16. */
  readonly dtype?: Extract<DType, "F32" | "F16" | "BF16">;
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
  const tensors = syntheticTensors(family, options);
  const config = new TextEncoder().encode(`${JSON.stringify(syntheticConfig(family, options), null, 2)}\n`);
  return [
    ...packShards(tensors, options.maxShardBytes ?? defaultShardBytes),
    outputFile("config.json", [bytesContent(config)]),
  ];
}

function syntheticConfig(family: FamilyDescription, options: SyntheticOptions): Record<string, unknown> {
  const { headDim = options.hiddenSize / options.heads } = options;
  const { experts, topK, expertWidth } = family.config;
  return {
    architectures: [family.name === "mixtral" ? "MixtralForCausalLM" : "Qwen3MoeForCausalLM"],
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
    tie_word_embeddings: options.tied ?? false,
    eos_token_id: 0,
    ...(family.name === "qwen3_moe" && { norm_topk_prob: true }),
    ...Object.fromEntries([
      [experts[0], options.experts],
      [topK[0], options.topK],
      [expertWidth[0], options.expertWidth],
    ]),
  };
}

function syntheticTensors(family: FamilyDescription, options: SyntheticOptions): OutputTensor[] {
  const { hiddenSize, vocabSize, heads, kvHeads, experts, expertWidth, dtype = "BF16" } = options;
  const { headDim = hiddenSize / heads, tied = false, fused = false } = options;
  const shapes: { name: string; shape: readonly number[]; isNorm: boolean }[] = [];
  const add = (name: string, shape: readonly number[], isNorm = false) =>
    shapes.push({ name, shape, isNorm });
  const names = family.tensors;
  const layout = family.layouts.find(({ kind }) => kind === (fused ? "fused" : "separate"));
  if (!layout)
    throw new CoppiceError("COPPICE_USAGE", `${family.name} has no ${fused ? "fused" : "separate"} layout`);
  add(names.embedding, [vocabSize, hiddenSize]);
  for (let layer = 0; layer < options.layers; layer++) {
    const at = (pattern: string) => fillIn(pattern, layer);
    const attention = at("model.layers.{l}.self_attn");
    add(`${at(names.attentionNorm)}.weight`, [hiddenSize], true);
    add(`${attention}.q_proj.weight`, [heads * headDim, hiddenSize]);
    add(`${attention}.k_proj.weight`, [kvHeads * headDim, hiddenSize]);
    add(`${attention}.v_proj.weight`, [kvHeads * headDim, hiddenSize]);
    add(`${attention}.o_proj.weight`, [hiddenSize, heads * headDim]);
    if (family.name === "qwen3_moe") {
      add(`${attention}.q_norm.weight`, [headDim], true);
      add(`${attention}.k_norm.weight`, [headDim], true);
    }
    add(`${at(names.feedForwardNorm)}.weight`, [hiddenSize], true);
    add(at(layout.router), [experts, hiddenSize]);
    if (layout.kind === "fused") {
      add(at(layout.gateUp as string), [experts, 2 * expertWidth, hiddenSize]);
      add(at(layout.down), [experts, hiddenSize, expertWidth]);
      continue;
    }
    for (let expert = 0; expert < experts; expert++) {
      const part = (role: keyof MlpNames) =>
        `${fillIn(layout.experts[role] as string, layer, expert)}.weight`;
      add(part("gate"), [expertWidth, hiddenSize]);
      add(part("up"), [expertWidth, hiddenSize]);
      add(part("down"), [hiddenSize, expertWidth]);
    }
  }
  add(`${names.finalNorm}.weight`, [hiddenSize], true);
  if (!tied) add(`${names.head}.weight`, [vocabSize, hiddenSize]);
  const parameters = shapes.reduce((sum, { shape }) => sum + elementCount(shape), 0);
  const block = new RandomBlock(dtype, parameters, options.seed ?? 0);
  return shapes.map(({ name, shape, isNorm }) => {
    return { name, dtype, shape, contents: [block.tensor(elementCount(shape), isNorm)] };
  });
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

  constructor(dtype: DType, parameters: number, seed: number) {
    this.#rng = Rng.fromSeed(seed);
    this.#width = dtypeBytes[dtype];
    this.#length = parameters > smallModel ? largeBlock : smallBlock;
    const values = Float32Array.from({ length: this.#length }, () => 0.02 * this.#rng.normal());
    this.#norms = encoded(
      dtype,
      values.map((value) => 1 + value),
    );
    this.#weights = encoded(dtype, values);
  }

  tensor(count: number, isNorm: boolean): Content {
    const block = isNorm ? this.#norms : this.#weights;
    const start = this.#rng.integer(this.#length) * this.#width;
    return {
      bytes: count * this.#width,
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

import { elementCount, type GatedMlpSpec, moeLayers, type TensorRef, throwIfAborted } from "@coppice/core";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import type { ModelDescription } from "./families/describe.js";
import type { SourceCache } from "./source-cache.js";

/** Bytes hashed from the start of routers and of tensors outside the experts. */
const denseSample = 4096;
/** Bytes hashed from the start of each expert. */
const expertSample = 256;
/** Tensors outside the experts that are sampled, and experts, evenly chosen when there are more. */
const mostDense = 256;
const mostExperts = 4096;
/** Reads under way at once. */
const parallel = 16;

/**
 * Identity of a model's weights, 64 hex digits, without reading them all: SHA-256 over
 *
 * - the settings that the computation depends on,
 * - name, dtype and shape of every tensor of the checkpoint,
 * - the first 4 KiB of every router, and of the embedding, norms, attention and dense tensors (256 of them, evenly
 *   chosen, when there are more),
 * - the first 256 bytes of the gate matrix of every expert (4096 of them, evenly chosen, when there are more).
 *
 * It does not depend on how tensors are split into files, on the folder, on the tokenizer or on other files. It tells
 * checkpoints of different training, pruning or merging apart; it does not detect a change of a few values deep
 * inside a tensor.
 */
export async function fingerprintModel(
  model: ModelDescription,
  tensors: ReadonlyMap<string, TensorRef>,
  sources: SourceCache,
  signal?: AbortSignal,
): Promise<string> {
  const hash = sha256.create();
  hash.update(utf8ToBytes(`coppice.fingerprint.1\n${JSON.stringify(settingsOf(model))}\n`));
  const names = [...tensors.keys()].sort();
  const lines = names.map((name) => {
    const { dtype, shape } = tensors.get(name) as TensorRef;
    return JSON.stringify([name, dtype, shape]);
  });
  hash.update(utf8ToBytes(`${lines.join("\n")}\n`));
  const samples = sampledTensors(model);
  for (let from = 0; from < samples.length; from += parallel) {
    throwIfAborted(signal, "reading the model's fingerprint");
    const parts = await Promise.all(
      samples.slice(from, from + parallel).map(async ({ ref, limit }) => {
        const bytes = new Uint8Array(Math.min(limit, ref.end - ref.begin));
        await sources.use(ref.file, (source) => source.read(ref.begin, bytes));
        return bytes;
      }),
    );
    for (const part of parts) hash.update(part);
  }
  return bytesToHex(hash.digest());
}

/** In an order that depends on the model alone. */
function sampledTensors(model: ModelDescription): { ref: TensorRef; limit: number }[] {
  const layers = moeLayers(model as Parameters<typeof moeLayers>[0]);
  const routers = layers.map(({ feedForward }) => feedForward.router.weight);
  const experts = layers.flatMap(({ feedForward }) => feedForward.experts.map(({ gate }) => gate));
  return [
    ...routers.map((ref) => ({ ref, limit: denseSample })),
    ...evenly(denseTensors(model), mostDense).map((ref) => ({ ref, limit: denseSample })),
    ...evenly(experts, mostExperts).map((ref) => ({ ref, limit: expertSample })),
  ];
}

function denseTensors(model: ModelDescription): TensorRef[] {
  const tensors = [model.embedding, model.finalNorm.weight, model.head];
  for (const { attention, attentionNorm, feedForwardNorm, feedForward } of model.layers) {
    tensors.push(attentionNorm.weight, feedForwardNorm.weight);
    for (const { weight } of [attention.query, attention.key, attention.value, attention.output]) {
      tensors.push(weight);
    }
    if (feedForward.kind === "dense") tensors.push(feedForward.mlp.gate);
  }
  return tensors;
}

function evenly<T>(items: readonly T[], most: number): T[] {
  if (items.length <= most) return [...items];
  return Array.from({ length: most }, (_, i) => items[Math.floor((i * items.length) / most)] as T);
}

/** The description without its tensors: every number and flag that changes what the model computes. */
function settingsOf(model: ModelDescription): unknown {
  const mlp = (spec: GatedMlpSpec) => [spec.width, spec.activation];
  return [
    model.family,
    model.hiddenSize,
    model.vocabSize,
    model.tied,
    model.layers.map(({ attention, attentionNorm, feedForward }) => [
      attentionNorm.epsilon,
      attention.heads,
      attention.kvHeads,
      attention.headDim,
      attention.scale,
      attention.rotary.theta,
      attention.rotary.dimensions,
      attention.slidingWindow ?? null,
      feedForward.kind === "dense"
        ? mlp(feedForward.mlp)
        : [
            elementCount(feedForward.router.weight.shape),
            feedForward.router.order,
            feedForward.router.normalize,
            feedForward.router.topK,
            mlp(feedForward.experts[0] as GatedMlpSpec),
          ],
    ]),
  ];
}

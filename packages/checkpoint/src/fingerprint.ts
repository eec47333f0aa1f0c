import {
  type AttentionSpec,
  attentionTensors,
  type DecoderLayer,
  elementCount,
  type MlpSpec,
  mlpTensors,
  moeLayers,
  type NormSpec,
  normTensors,
  type RotarySpec,
  routerTensors,
  type TensorRef,
  throwIfAborted,
} from "@coppice/core";
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
 * - the first 4 KiB of every router tensor, and of the embedding, norms, attention, dense and shared tensors and those
 *   that are not described (256 of them, evenly chosen, when there are more),
 * - the first 256 bytes of the up matrix of every expert as it is stored, and of the stack where experts lie strided
 *   in one (4096 of them, evenly chosen, when there are more).
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
  hash.update(utf8ToBytes(`coppice.fingerprint.2\n${JSON.stringify(settingsOf(model))}\n`));
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
  const layers = moeLayers(model);
  const routers = layers.flatMap(({ feedForward }) => routerTensors(feedForward));
  const experts = layers.flatMap(({ feedForward }) =>
    feedForward.experts.map((expert) => expert.gate ?? expert.up),
  );
  return [
    ...routers.map((ref) => ({ ref, limit: denseSample })),
    ...evenly(denseTensors(model), mostDense).map((ref) => ({ ref, limit: denseSample })),
    ...evenly(experts, mostExperts).map((ref) => ({ ref, limit: expertSample })),
  ];
}

function denseTensors(model: ModelDescription): TensorRef[] {
  const tensors = [model.embedding, ...normTensors(model.finalNorm), model.head];
  if (model.headBias) tensors.push(model.headBias);
  for (const { attention, attentionNorm, feedForwardNorm, feedForward } of model.layers) {
    tensors.push(...normTensors(attentionNorm), ...normTensors(feedForwardNorm));
    tensors.push(...attentionTensors(attention));
    if (feedForward.kind === "dense") tensors.push(...mlpTensors(feedForward.mlp));
    else if (feedForward.kind === "moe") {
      if (feedForward.shared) tensors.push(...mlpTensors(feedForward.shared));
      if (feedForward.sharedGate) tensors.push(feedForward.sharedGate);
    }
  }
  return [...tensors, ...(model.undescribed ?? [])];
}

function evenly<T>(items: readonly T[], most: number): T[] {
  if (items.length <= most) return [...items];
  return Array.from({ length: most }, (_, i) => items[Math.floor((i * items.length) / most)] as T);
}

/** The description without its tensors: every number and flag that changes what the model computes. */
function settingsOf(model: ModelDescription): unknown {
  return [
    model.family,
    model.hiddenSize,
    model.vocabSize,
    model.tied,
    [model.embeddingScale ?? 1, model.residualScale ?? 1, model.logitScale ?? 1],
    normSettings(model.finalNorm),
    model.layers.map((layer) => [
      normSettings(layer.attentionNorm),
      attentionSettings(layer.attention),
      normSettings(layer.feedForwardNorm),
      feedForwardSettings(layer.feedForward),
    ]),
  ];
}

const normSettings = ({ kind, epsilon }: NormSpec) => [kind, epsilon];
const mlpSettings = ({ width, activation }: MlpSpec) => [width, activation];

function rotarySettings({ theta, dimensions, interleaved, scaling }: RotarySpec): unknown {
  return [theta, dimensions, interleaved, scaling ?? null];
}

function attentionSettings(spec: AttentionSpec): unknown {
  if (spec.kind === "other") return [spec.kind, spec.name];
  const { heads, scale, slidingWindow, queryNorm, rotary } = spec;
  const shared = [
    spec.kind,
    heads,
    scale,
    slidingWindow ?? null,
    queryNorm ? normSettings(queryNorm) : null,
    rotary ? rotarySettings(rotary) : null,
  ];
  if (spec.kind === "mla")
    return [...shared, spec.nopeDim, spec.valueDim, spec.rank, normSettings(spec.kvNorm)];
  const { kvHeads, headDim, keyNorm, normAfterRotary, clip, chunk, temperature } = spec;
  return [
    ...shared,
    kvHeads,
    headDim,
    keyNorm ? [keyNorm.over, normSettings(keyNorm)] : null,
    normAfterRotary ?? false,
    clip ?? null,
    chunk ?? null,
    temperature ? [temperature.floor, temperature.scale] : null,
  ];
}

function feedForwardSettings(spec: DecoderLayer["feedForward"]): unknown {
  if (spec.kind === "other") return spec.kind;
  if (spec.kind === "dense") return mlpSettings(spec.mlp);
  const { weight, bias, correction, ...routing } = spec.router;
  return [
    elementCount(weight.shape),
    [bias !== undefined, correction !== undefined],
    // Sorted, so that the order in which a family states them does not count.
    Object.entries(routing).sort(([a], [b]) => (a < b ? -1 : 1)),
    mlpSettings(spec.experts[0] as MlpSpec),
    spec.shared ? mlpSettings(spec.shared) : null,
  ];
}

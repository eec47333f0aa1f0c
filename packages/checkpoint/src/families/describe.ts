import {
  type AttentionSpec,
  CoppiceError,
  type DecoderLayer,
  type DType,
  dtypeBytes,
  type HeadNormSpec,
  type LinearSpec,
  type MlpSpec,
  type MoeModel,
  type MoeSpec,
  type NormSpec,
  type TensorRef,
} from "@coppice/core";
import type { ConfigReader } from "../config.js";
import type { Detected } from "./detect.js";
import { type MlpNames, tensorName } from "./family.js";
import { readSettings, type Settings } from "./settings.js";

/** Weights that can be read and merged as numbers; integers need scales, which no family here has. */
const weightTypes: readonly DType[] = ["F64", "F32", "F16", "BF16", "F8_E4M3"];
/** Buffers that old checkpoints carry and every runtime computes anew. */
const ignoredTensors = /\.rotary_emb\.inv_freq$/;

/** A model without its fingerprint. */
export type ModelDescription = Omit<MoeModel, "fingerprint">;

/**
 * Describes the model that config and tensors form. Every tensor is looked up and its shape compared with the
 * config. Every tensor of the checkpoint below the roots that the family uses (`model.`) must be accounted for,
 * because one that is left out (a bias, a scale) would make the description compute something else; tensors of other
 * names are no part of the model.
 * @throws COPPICE_FORMAT_CONFIG, COPPICE_FORMAT_MISSING_TENSOR, COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_DTYPE,
 * COPPICE_FAMILY_UNSUPPORTED
 */
export function describeModel(
  detected: Detected,
  config: ConfigReader,
  generation: ConfigReader,
  tensors: ReadonlyMap<string, TensorRef>,
): ModelDescription {
  const { family } = detected;
  const settings = readSettings(family, config, generation);
  const { hiddenSize, vocabSize } = settings;
  const take = new TensorTaker(tensors);
  const names = family.tensors;
  const embedding = take.tensor(names.embedding, [vocabSize, hiddenSize]);
  const isMoe = family.moeLayers?.(config) ?? (() => true);
  const layers: DecoderLayer[] = [];
  for (let index = 0; index < settings.layers; index++) {
    const norm = (name: string): NormSpec => ({
      kind: "rms",
      weight: take.tensor(tensorName(name, index), [hiddenSize]),
      epsilon: settings.epsilon,
    });
    layers.push({
      index,
      attentionNorm: norm(names.attentionNorm),
      attention: describeAttention(detected, settings, take, index),
      feedForwardNorm: norm(names.feedForwardNorm),
      feedForward: isMoe(index)
        ? describeExperts(detected, settings, take, index)
        : { kind: "dense", mlp: describeDense(detected, config, settings, take, index) },
    });
  }
  if (!layers.some(({ feedForward }) => feedForward.kind === "moe")) {
    throw new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      "by its config.json, none of the layers has experts",
    );
  }
  const finalNorm: NormSpec = {
    kind: "rms",
    weight: take.tensor(names.finalNorm, [hiddenSize]),
    epsilon: settings.epsilon,
  };
  // A tied checkpoint may carry a copy of the embedding under the head's name; loaders ignore it.
  if (settings.tied) take.ignore(names.head);
  const head = settings.tied ? embedding : take.tensor(names.head, [vocabSize, hiddenSize]);
  take.checkAllTaken(family.title, Object.values(family.tensors));
  return {
    family: family.name,
    hiddenSize,
    vocabSize,
    contextLength: settings.contextLength,
    embedding,
    layers,
    finalNorm,
    head,
    tied: settings.tied,
    endTokens: settings.endTokens,
    ...(settings.beginToken !== undefined && { beginToken: settings.beginToken }),
  };
}

function describeAttention(
  { family }: Detected,
  settings: Settings,
  take: TensorTaker,
  layer: number,
): AttentionSpec {
  const { heads, kvHeads, headDim, hiddenSize, slidingWindow } = settings;
  const names = family.tensors;
  const linear = (name: string, rows: number, columns: number): LinearSpec => ({
    weight: take.tensor(`${tensorName(name, layer)}.weight`, [rows, columns]),
    ...(settings.attentionBias && { bias: take.tensor(`${tensorName(name, layer)}.bias`, [rows]) }),
  });
  const headNorm = (name: string): HeadNormSpec => ({
    kind: "rms",
    over: "head",
    weight: take.tensor(tensorName(name, layer), [headDim]),
    epsilon: settings.epsilon,
  });
  return {
    kind: "gqa",
    heads,
    kvHeads,
    headDim,
    scale: headDim ** -0.5,
    query: linear(names.query, heads * headDim, hiddenSize),
    key: linear(names.key, kvHeads * headDim, hiddenSize),
    value: linear(names.value, kvHeads * headDim, hiddenSize),
    output: linear(names.output, hiddenSize, heads * headDim),
    ...(names.queryNorm && { queryNorm: headNorm(names.queryNorm) }),
    ...(names.keyNorm && { keyNorm: headNorm(names.keyNorm) }),
    rotary: { theta: settings.theta, dimensions: headDim, interleaved: false },
    ...(slidingWindow !== undefined && { slidingWindow }),
  };
}

function describeExperts(
  { family, layout }: Detected,
  settings: Settings,
  take: TensorTaker,
  layer: number,
): MoeSpec {
  const { experts: count, expertWidth: width, hiddenSize } = settings;
  const router = {
    weight: take.tensor(tensorName(layout.router, layer), [count, hiddenSize]),
    order: family.router.order,
    ...(settings.normalize && { normalize: { power: 1 } }),
    topK: settings.topK,
  };
  const experts: MlpSpec[] = [];
  if (layout.kind === "separate") {
    for (let expert = 0; expert < count; expert++) {
      experts.push(describeMlp(layout.experts, width, hiddenSize, take, layer, expert));
    }
  } else {
    const gateUp = take.tensor(tensorName(layout.gateUp, layer), [count, 2 * width, hiddenSize]);
    const down = take.tensor(tensorName(layout.down, layer), [count, hiddenSize, width]);
    for (let expert = 0; expert < count; expert++) {
      experts.push({
        gate: part(gateUp, expert * 2, [width, hiddenSize], `${expert}, gate`),
        up: part(gateUp, expert * 2 + 1, [width, hiddenSize], `${expert}, up`),
        down: part(down, expert, [hiddenSize, width], String(expert)),
        width,
        activation: { kind: "silu" },
      });
    }
  }
  checkOneDtype(experts, layer);
  return { kind: "moe", router, experts };
}

/** Merged experts are stored in the dtype of their layer's experts, so there must be one. */
function checkOneDtype(experts: readonly MlpSpec[], layer: number): void {
  const [first] = experts as readonly [MlpSpec];
  for (const expert of experts) {
    for (const role of ["gate", "up", "down"] as const) {
      const [one, other] = [first[role], expert[role]];
      if (one?.dtype === other?.dtype) continue;
      throw new CoppiceError(
        "COPPICE_FORMAT_DTYPE",
        `the experts of layer ${layer} are stored in different dtypes: ${one?.name} in ${one?.dtype}, ` +
          `${other?.name} in ${other?.dtype}`,
        { details: { layer, tensor: other?.name } },
      );
    }
  }
}

function describeDense(
  { family }: Detected,
  config: ConfigReader,
  settings: Settings,
  take: TensorTaker,
  layer: number,
): MlpSpec {
  const width = config.integer(family.config.denseWidth ?? []);
  return describeMlp(family.tensors.dense as MlpNames, width, settings.hiddenSize, take, layer);
}

function describeMlp(
  names: MlpNames,
  width: number,
  hiddenSize: number,
  take: TensorTaker,
  layer: number,
  expert?: number,
): MlpSpec {
  const tensor = (name: string, shape: number[]) => take.tensor(tensorName(name, layer, expert), shape);
  return {
    gate: tensor(names.gate, [width, hiddenSize]),
    up: tensor(names.up, [width, hiddenSize]),
    down: tensor(names.down, [hiddenSize, width]),
    width,
    activation: { kind: "silu" },
  };
}

/** The `position`-th consecutive part of `shape` of a stacked tensor, as a tensor of its own. */
function part(stack: TensorRef, position: number, shape: readonly number[], label: string): TensorRef {
  const bytes = shape.reduce((product, size) => product * size, dtypeBytes[stack.dtype]);
  const begin = stack.begin + position * bytes;
  return { ...stack, name: `${stack.name}[${label}]`, shape, begin, end: begin + bytes };
}

/** Looks up tensors, checks them and remembers which were asked for. */
class TensorTaker {
  readonly #tensors: ReadonlyMap<string, TensorRef>;
  readonly #taken = new Set<string>();

  constructor(tensors: ReadonlyMap<string, TensorRef>) {
    this.#tensors = tensors;
  }

  tensor(name: string, shape: readonly number[]): TensorRef {
    const ref = this.#tensors.get(name);
    if (!ref) {
      throw new CoppiceError(
        "COPPICE_FORMAT_MISSING_TENSOR",
        `tensor ${name} is missing, expected of shape [${shape.join(", ")}] by config.json`,
        { details: { tensor: name, shape } },
      );
    }
    if (ref.shape.length !== shape.length || ref.shape.some((size, i) => size !== shape[i])) {
      throw new CoppiceError(
        "COPPICE_FORMAT_SHAPE",
        `tensor ${name} has shape [${ref.shape.join(", ")}], expected [${shape.join(", ")}] by config.json`,
        { details: { tensor: name, shape: ref.shape, expected: shape } },
      );
    }
    if (!weightTypes.includes(ref.dtype)) {
      throw new CoppiceError(
        "COPPICE_FORMAT_DTYPE",
        `tensor ${name} has dtype ${ref.dtype}, expected one of ${weightTypes.join(", ")}`,
        {
          hint: "quantized checkpoints are not read; give the original",
          details: { tensor: name, dtype: ref.dtype },
        },
      );
    }
    this.#taken.add(name);
    return ref;
  }

  ignore(name: string): void {
    this.#taken.add(name);
  }

  checkAllTaken(family: string, names: readonly (string | MlpNames)[]): void {
    const roots = new Set(
      names.map((name) => (typeof name === "string" ? name.split(".", 1)[0] : undefined)),
    );
    const rest = [...this.#tensors.keys()].filter(
      (name) => !this.#taken.has(name) && roots.has(name.split(".", 1)[0]) && !ignoredTensors.test(name),
    );
    if (rest.length === 0) return;
    const shown = rest.slice(0, 3).map((name) => name.slice(0, 120));
    throw new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      `the checkpoint has ${rest.length} tensors that ${family} as config.json states it does not have, such as ${shown.join(", ")}`,
      { details: { tensors: rest.slice(0, 16) } },
    );
  }
}

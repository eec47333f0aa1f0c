import {
  CoppiceError,
  type DecoderLayer,
  type MlpSpec,
  type MoeModel,
  type NormSpec,
  type TensorRef,
} from "@coppice/core";
import type { ConfigReader } from "../config.js";
import { checkBeside } from "./beside-experts.js";
import { type Description, describeAttention } from "./describe-attention.js";
import { describeExperts, findPacked, takeMlp } from "./describe-experts.js";
import { type Candidate, findLayout } from "./detect.js";
import { findEdits } from "./expert-edits.js";
import type { ExpertTensors } from "./expert-tensors.js";
import { type ExpertLayout, flag, type MlpNames, type SharedDescription } from "./family.js";
import { findMtp, type MtpLayer } from "./mtp.js";
import type { NameIndex } from "./name-index.js";
import { readQuantization } from "./quantization.js";
import { readSettings, type Settings } from "./settings.js";
import { TensorTaker } from "./tensor-taker.js";

/** A model without its fingerprint. */
export type ModelDescription = Omit<MoeModel, "fingerprint">;

export interface Described {
  readonly model: ModelDescription;
  readonly layout: ExpertLayout;
  /** What surgery edits: every layer with experts, then every layer for multi-token prediction that has some. */
  readonly edits: readonly ExpertTensors[];
  readonly mtp: readonly MtpLayer[];
  /** `quant_method` of the config. */
  readonly quantization: string | undefined;
}

/**
 * Describes the model that config and tensors form. First every set of experts is found by name and checked to be
 * complete. Then every tensor is looked up and its shape compared with the config. Every tensor of the language model
 * must be accounted for, because one that is left out (a bias, a scale) would make the description compute something
 * else; in models that are edited only, those around the experts are listed as not described.
 * @param root config.json; that of the language model within is the candidate's own
 * @throws COPPICE_FORMAT_CONFIG, COPPICE_FORMAT_MISSING_TENSOR, COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_DTYPE,
 * COPPICE_FORMAT_EXPERTS, COPPICE_FORMAT_QUANTIZED, COPPICE_FORMAT_MTP, COPPICE_FAMILY_UNSUPPORTED
 */
export function describeModel(
  candidate: Candidate,
  root: ConfigReader,
  generation: ConfigReader,
  index: NameIndex,
): Described {
  const { family, config, naming } = candidate;
  const settings = withOwnHead(readSettings(family, config, root, generation), candidate, index);
  const quantization = readQuantization(root.get("quantization_config") ? root : config);
  const take = new TensorTaker(index, naming, quantization);
  const isMoe = family.moeLayers?.(config) ?? (() => true);
  const { layout, edits, last } = findDecoderEdits(candidate, settings.layers, isMoe, take);
  const mtp = findMtp(candidate, settings.layers, last, index);
  const mtpEdits = mtp.flatMap((layer) =>
    findMtpEdits(layer, edits.at(-1) as ExpertTensors, family.shared, take),
  );
  const packed = findPacked(take, naming.body);
  const editOnly = packed ? packedReason(packed, quantization.method) : family.editOnly;
  const description: Description = { family, config, settings, take };
  const model = editOnly
    ? describeEdited(description, layout, isMoe, packed === undefined)
    : describeExecuted(description, layout, isMoe);
  const undescribed = accountForAll(candidate, take, mtp, editOnly !== undefined);
  return {
    model: {
      ...model,
      ...(editOnly && { editOnly }),
      ...(undescribed.length > 0 && { undescribed }),
    },
    layout,
    edits: [...edits, ...mtpEdits],
    mtp,
    quantization: quantization.method,
  };
}

/**
 * A head in the files is the head, whatever the config says: transformers 5 ties it to the embedding only where the two
 * are equal, which makes no difference.
 */
function withOwnHead(settings: Settings, { family, naming }: Candidate, index: NameIndex): Settings {
  const head = naming.name(family.tensors.head);
  const isStored = ["weight", "qweight", "weight_packed"].some((part) => index.has(`${head}.${part}`));
  return isStored ? { ...settings, tied: false } : settings;
}

function packedReason({ name, dtype }: TensorRef, method: string | undefined): string {
  return (
    `its weights are packed integers${method === undefined ? "" : ` of ${method}`} (${name}, ${dtype}), ` +
    "which Coppice moves and does not decode"
  );
}

function findDecoderEdits(
  candidate: Candidate,
  layers: number,
  isMoe: (layer: number) => boolean,
  take: TensorTaker,
): { layout: ExpertLayout; edits: ExpertTensors[]; last: number } {
  const { family, config, naming } = candidate;
  const edits: ExpertTensors[] = [];
  let before: { layout: ExpertLayout; layer: number } | undefined;
  let last = -1;
  for (let layer = 0; layer < Math.min(layers, mostLayers); layer++) {
    if (!isMoe(layer)) continue;
    const layout = findLayout(candidate, layer, before, take.index);
    before ??= { layout, layer };
    const place = { layer, label: `layer ${layer}`, name: (pattern: string) => naming.name(pattern, layer) };
    const count = config.layerInteger(family.config.experts, layer);
    const set = findEdits(layout, place, count, take.index, take.quantization);
    checkBeside(set, layout, place, family.shared, take.index);
    edits.push(set);
    last = layer;
  }
  if (before) return { layout: before.layout, edits, last };
  throw new CoppiceError("COPPICE_FAMILY_UNSUPPORTED", "by its config.json, none of the layers has experts");
}

/** Far more than the deepest models have; a config may claim billions, whose tensors are then missing. */
const mostLayers = 10_000;

function findMtpEdits(
  layer: MtpLayer,
  model: ExpertTensors,
  shared: SharedDescription | undefined,
  take: TensorTaker,
): ExpertTensors[] {
  if (!layer.layout) return [];
  const router = take.index.get(layer.name(layer.layout.router));
  const rows = router?.shape[0];
  if (router && rows !== model.experts) {
    throw new CoppiceError(
      "COPPICE_FORMAT_MTP",
      `${router.name} of ${layer.label} has ${rows} rows, ${model.label}, whose plan it follows, has ${model.experts} experts`,
      { details: { layer: layer.label, rows: rows ?? null, experts: model.experts } },
    );
  }
  const set = findEdits(layer.layout, layer, model.experts, take.index, take.quantization);
  checkBeside(set, layer.layout, layer, shared, take.index);
  return [set];
}

/** Describes everything by looking its tensors up with `take`, which are then all that the model has. */
export function describeExecuted(
  description: Description,
  layout: ExpertLayout,
  isMoe: (layer: number) => boolean,
): ModelDescription {
  const { family, config, settings, take } = description;
  const { hiddenSize, vocabSize, epsilon } = settings;
  const names = family.tensors;
  const norm = (name: string, layer?: number): NormSpec => {
    const base = take.name(name, layer);
    const weight = take.tensor(`${base}.weight`, [hiddenSize]);
    if (family.norm === "rms") return { kind: "rms", weight, epsilon };
    return { kind: "layer", weight, bias: take.tensor(`${base}.bias`, [hiddenSize]), epsilon };
  };
  const embedding = take.weight(take.name(names.embedding).replace(/\.weight$/, ""), [vocabSize, hiddenSize]);
  const attention = describeAttention(description);
  const experts = describeExperts(description, layout, true);
  const layers: DecoderLayer[] = [];
  for (let index = 0; index < settings.layers; index++) {
    layers.push({
      index,
      attentionNorm: norm(names.attentionNorm, index),
      attention: attention(index),
      feedForwardNorm: norm(names.feedForwardNorm, index),
      feedForward: isMoe(index) ? experts(index) : { kind: "dense", mlp: describeDense(description, index) },
    });
  }
  const finalNorm = norm(names.finalNorm);
  const head = take.name(names.head);
  const factors = family.factors?.(config);
  return {
    ...basics(description),
    embedding,
    layers,
    finalNorm,
    head: settings.tied ? embedding : take.weight(head, [vocabSize, hiddenSize]),
    ...(flag(config, family.headBias) && { headBias: take.tensor(`${head}.bias`, [vocabSize]) }),
    ...(factors && factors.embedding !== 1 && { embeddingScale: factors.embedding }),
    ...(factors && factors.residual !== 1 && { residualScale: factors.residual }),
    ...(factors && factors.logits !== 1 && { logitScale: factors.logits }),
  };
}

function describeDense({ family, config, settings, take }: Description, layer: number): MlpSpec {
  const width = config.integer(family.config.denseWidth ?? []);
  const names = family.tensors.dense as MlpNames;
  const { hiddenSize } = settings;
  return takeMlp(take, names, width, hiddenSize, flag(config, family.denseBias), { kind: "silu" }, layer);
}

/** The ends of the model and its experts; everything else stays undescribed. */
function describeEdited(
  description: Description,
  layout: ExpertLayout,
  isMoe: (layer: number) => boolean,
  isWhole: boolean,
): ModelDescription {
  const { family, settings, take } = description;
  const { hiddenSize, vocabSize, epsilon } = settings;
  const kind = family.norm;
  const embeddingName = take.name(family.tensors.embedding);
  const embedding =
    take.optional(`${embeddingName}_packed`) ?? take.tensor(embeddingName, [vocabSize, hiddenSize]);
  const experts = describeExperts(description, layout, isWhole);
  const mixer = family.attention.kind === "other" ? family.attention.name : "attention";
  const layers = Array.from(
    { length: settings.layers },
    (_, index): DecoderLayer => ({
      index,
      attentionNorm: { kind, epsilon },
      attention: { kind: "other", name: mixer },
      feedForwardNorm: { kind, epsilon },
      feedForward: isMoe(index) ? experts(index) : { kind: "other" },
    }),
  );
  const head = take.name(family.tensors.head);
  const norm = take.tensor(`${take.name(family.tensors.finalNorm)}.weight`, [hiddenSize]);
  const own = settings.tied
    ? embedding
    : (take.optional(`${head}.weight`, `${head}.qweight`, `${head}.weight_packed`) ??
      take.any(`${head}.weight`, [vocabSize, hiddenSize]));
  return { ...basics(description), embedding, layers, finalNorm: { kind, weight: norm, epsilon }, head: own };
}

function basics({ family, settings }: Description) {
  const { hiddenSize, vocabSize, contextLength, tied, endTokens, beginToken } = settings;
  return {
    family: family.name,
    hiddenSize,
    vocabSize,
    contextLength,
    tied,
    endTokens,
    ...(beginToken !== undefined && { beginToken }),
  };
}

/**
 * Tensors that belong to the model and are not described.
 * @throws COPPICE_FAMILY_UNSUPPORTED when there are some in the language model of an executed checkpoint
 */
function accountForAll(
  { family, naming, wrapper }: Candidate,
  take: TensorTaker,
  mtp: readonly MtpLayer[],
  isEdited: boolean,
): TensorRef[] {
  const head = `${naming.name(family.tensors.head)}.`;
  const isMtp = (name: string) =>
    mtp.some(({ prefix }) => name.startsWith(prefix)) || (family.mtp && /(^|\.)mtp[._]/.test(name));
  // Models without shared experts keep matrices of no rows.
  const isEmpty = (name: string) => take.index.get(name)?.shape.includes(0);
  const rest = take.index.under("").filter((name) => !take.isTaken(name) && !isMtp(name) && !isEmpty(name));
  const isText = (name: string) => name.startsWith(naming.body) || name.startsWith(head);
  const text = rest.filter(isText);
  if (!isEdited && text.length > 0) {
    const shown = text.slice(0, 3).map((name) => name.slice(0, 120));
    throw new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      `the checkpoint has ${text.length} tensors that ${family.title} as config.json states it does not have, such as ${shown.join(", ")}`,
      { details: { tensors: text.slice(0, 16) } },
    );
  }
  // Beside a model of text alone, tensors of other names are no part of it.
  const own = wrapper === undefined && !isEdited ? [] : wrapper === undefined ? text : rest;
  return own.map((name) => take.index.get(name) as TensorRef);
}

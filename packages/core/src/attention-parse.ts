import {
  type AttentionPlan,
  type AttentionPlanModel,
  attentionPlanVersion,
  type SpanRule,
} from "./attention-plan.js";
import { CoppiceError } from "./errors.js";
import type { DecoderLayer, GroupedQueryAttentionSpec, MoeModel } from "./model.js";
import { array, integer, record, show } from "./plan-values.js";

/** Rules are few: a search space of spans has tens, and every runtime groups heads by them. */
const mostRules = 4096;
/** A block is a stretch of tokens that heads tell apart; the operators that know blocks stop at 128. */
const mostBlockSize = 4096;

/** A layer whose attention a plan can limit. */
export interface LimitableLayer extends DecoderLayer {
  readonly attention: GroupedQueryAttentionSpec;
}

/** Layers that a plan can limit: grouped-query attention that neither slides nor has chunks. */
export function limitableLayers(model: Pick<MoeModel, "layers">): LimitableLayer[] {
  return model.layers.filter((layer): layer is LimitableLayer => fixedAttention(layer) === undefined);
}

/**
 * What a plan for `model` says of it.
 * @throws COPPICE_ATTENTION_UNSUPPORTED where no layer can be limited, or their heads differ in number or size
 */
export function attentionPlanModel(model: MoeModel): AttentionPlanModel {
  const limitable = limitableLayers(model);
  const first = limitable[0]?.attention;
  if (!first) {
    const kinds = new Set(model.layers.map(fixedAttention));
    throw unsupported(
      `no layer of this ${model.family} model can be limited by an attention plan: its ${model.layers.length} layers have ` +
        [...kinds].join(", "),
    );
  }
  const { heads, kvHeads, headDim } = first;
  for (const { index, attention } of limitable) {
    if (attention.heads === heads && attention.kvHeads === kvHeads && attention.headDim === headDim) continue;
    throw unsupported(
      `layer ${index} has ${attention.heads} heads and ${attention.kvHeads} KV heads of ${attention.headDim}, layer ` +
        `${limitable[0]?.index} has ${heads} and ${kvHeads} of ${headDim}; attention plans need them to be alike`,
    );
  }
  const { family, fingerprint, layers } = model;
  return { family, fingerprint, layers: layers.length, heads, kvHeads, headDim };
}

/**
 * Reads an untrusted value as an attention plan for `model`. Unknown keys are refused, so that a misspelt key is not a
 * silent no-op. Plans for a checkpoint that the model was made from are taken (`MoeModel.derivedFrom`).
 * @throws COPPICE_ATTENTION_INVALID, COPPICE_ATTENTION_MODEL, COPPICE_ATTENTION_UNSUPPORTED
 */
export function parseAttentionPlan(value: unknown, model: MoeModel): AttentionPlan {
  const keys = ["format", "version", "model", "blockSize", "sinks", "rules", "layers", "report"];
  const plan = record(value, "the plan", keys, invalid);
  if (plan.format !== "coppice.attention")
    throw invalid(`format is ${show(plan.format)}, expected "coppice.attention"`);
  if (plan.version !== attentionPlanVersion)
    throw invalid(`version is ${show(plan.version)}, this release reads version ${attentionPlanVersion}`);
  const owner = parseOwner(plan.model, model);
  const blockSize = wholeNumber(plan.blockSize, "blockSize", 1, mostBlockSize);
  const sinks = wholeNumber(plan.sinks, "sinks", 0, model.contextLength - 1);
  const rules = array(plan.rules, "rules", invalid).map(parseRule);
  if (rules.length > mostRules) throw invalid(`it has ${rules.length} rules; at most ${mostRules} are read`);
  const entries = array(plan.layers, "layers", invalid);
  if (entries.length !== owner.layers)
    throw invalid(`layers has ${entries.length} entries, expected ${owner.layers}, one per decoder layer`);
  const layers = entries.map((entry, index) =>
    entry === null ? null : parseLayer(entry, index, model.layers[index] as DecoderLayer, rules.length),
  );
  const { report } = plan;
  if (report !== undefined && (typeof report !== "object" || report === null || Array.isArray(report)))
    throw invalid(`report is ${show(report)}, expected an object`);
  return {
    format: "coppice.attention",
    version: attentionPlanVersion,
    model: owner,
    blockSize,
    sinks,
    rules,
    layers,
    ...(report !== undefined && { report: report as Record<string, unknown> }),
  };
}

function parseOwner(value: unknown, model: MoeModel): AttentionPlanModel {
  const wanted = attentionPlanModel(model);
  const owner = record(value, "model", Object.keys(wanted), invalid);
  const sizes = {
    layers: "decoder layers",
    heads: "query heads per layer",
    kvHeads: "KV heads per layer",
    headDim: "values per head",
  };
  for (const [key, name] of Object.entries(sizes) as [keyof typeof sizes, string][]) {
    const found = integer(owner[key], `model.${key}`, invalid);
    if (found === wanted[key]) continue;
    throw foreign(`the attention plan is for ${found} ${name}; this model has ${wanted[key]}`);
  }
  const { family, fingerprint } = owner;
  if (typeof family !== "string" || typeof fingerprint !== "string")
    throw invalid(`model has the family ${show(family)} and the fingerprint ${show(fingerprint)}`);
  checkOwner({ ...wanted, family, fingerprint }, model);
  return { ...wanted, family, fingerprint };
}

function checkOwner(owner: AttentionPlanModel, model: MoeModel): void {
  const known = [model.fingerprint, ...(model.derivedFrom ?? [])];
  if (known.includes(owner.fingerprint)) return;
  const [own, ...origins] = known.map((fingerprint) => `"${fingerprint}"`);
  throw foreign(
    `the attention plan was made for a model with fingerprint "${owner.fingerprint}"; this model has ${own}` +
      (origins.length > 0 ? ` and was made from ${origins.join(", ")}` : ""),
  );
}

function parseRule(value: unknown, index: number): SpanRule {
  const where = `rules[${index}]`;
  const { alpha, beta } = record(value, where, ["alpha", "beta"], invalid);
  if (typeof alpha !== "number" || !Number.isFinite(alpha))
    throw invalid(`${where}.alpha is ${show(alpha)}, expected a number of tokens`);
  if (typeof beta !== "number" || !(beta >= 0 && beta <= 1))
    throw invalid(`${where}.beta is ${show(beta)}, expected a number from 0 to 1`);
  return { alpha, beta };
}

function parseLayer(value: unknown, index: number, layer: DecoderLayer, rules: number): number[] {
  const where = `layers[${index}]`;
  const fixed = fixedAttention(layer);
  if (fixed !== undefined) throw unsupported(`${where} has spans, but layer ${index} has ${fixed}`);
  const { kvHeads } = (layer as LimitableLayer).attention;
  const entries = array(value, where, invalid);
  if (entries.length !== kvHeads)
    throw invalid(`${where} has ${entries.length} rules, expected ${kvHeads}, one per KV head`);
  return entries.map((rule, head) => wholeNumber(rule, `${where}[${head}]`, 0, rules - 1));
}

/** Why no plan limits the layer, as a name of its attention; undefined: one can. */
function fixedAttention({ attention }: DecoderLayer): string | undefined {
  if (attention.kind === "other") return attention.name;
  if (attention.kind === "mla") return "multi-head latent attention";
  if (attention.slidingWindow !== undefined) return `a sliding window of ${attention.slidingWindow}`;
  if (attention.chunk !== undefined) return `chunks of ${attention.chunk}`;
  return undefined;
}

function wholeNumber(value: unknown, where: string, least: number, most: number): number {
  const found = integer(value, where, invalid);
  if (found >= least && found <= most) return found;
  throw invalid(`${where} is ${found}, expected ${least} to ${most}`);
}

function invalid(message: string): CoppiceError {
  return new CoppiceError("COPPICE_ATTENTION_INVALID", `not a usable attention plan: ${message}`);
}

function foreign(message: string): CoppiceError {
  return new CoppiceError("COPPICE_ATTENTION_MODEL", message, {
    hint: "give the checkpoint that the plan was made for, or one that was pruned or quantized from it",
  });
}

function unsupported(message: string): CoppiceError {
  return new CoppiceError("COPPICE_ATTENTION_UNSUPPORTED", message, {
    hint: "plans limit grouped-query attention that sees everything before it; other layers stay as they are (null)",
  });
}

import { CoppiceError } from "./errors.js";
import { type MoeModel, type MoeSpec, moeLayers, type RouterSpec } from "./model.js";
import { type LayerPlan, type Plan, planVersion } from "./plan.js";
import { parseDown, parseRouter, parseRows, parseSkip, parseUnits } from "./plan-parts.js";
import { array, integer, invalid, record, show } from "./plan-values.js";
import { checkKeep } from "./select-experts.js";

/**
 * Reads an untrusted value as a plan for `model`. Unknown keys are refused, so that a misspelt key is not a
 * silent no-op.
 * @throws COPPICE_PLAN_INVALID, COPPICE_PLAN_KEEP, COPPICE_PLAN_MODEL, COPPICE_PLAN_RECORD for the record of a written folder
 * that left values out
 */
export function parsePlan(value: unknown, model: MoeModel): Plan {
  const plan = record(value, "the plan", ["format", "version", "model", "layers"]);
  if (plan.format !== "coppice.plan") {
    throw invalid(`format is ${show(plan.format)}, expected "coppice.plan"`);
  }
  if (plan.version !== planVersion) {
    throw invalid(`version is ${show(plan.version)}, this release reads version ${planVersion}`);
  }
  const owner = record(plan.model, "model", ["family", "fingerprint"]);
  if (owner.fingerprint !== model.fingerprint || owner.family !== model.family) {
    throw new CoppiceError(
      "COPPICE_PLAN_MODEL",
      `the plan was made for a ${show(owner.family)} model with fingerprint ${show(owner.fingerprint)}; ` +
        `this is a "${model.family}" model with fingerprint "${model.fingerprint}"`,
      { hint: "give the checkpoint that the plan was searched on", details: { plan: owner } },
    );
  }
  const specs = new Map(moeLayers(model).map((layer) => [layer.index, layer.feedForward]));
  const seen = new Set<number>();
  const layers = array(plan.layers, "layers").map((entry, i) => {
    const layer = parseLayer(entry, i, specs);
    if (seen.has(layer.layer)) throw invalid(`layer ${layer.layer} is listed twice`);
    seen.add(layer.layer);
    return layer;
  });
  return {
    format: "coppice.plan",
    version: planVersion,
    model: { family: model.family, fingerprint: model.fingerprint },
    layers,
  };
}

function parseLayer(value: unknown, position: number, specs: ReadonlyMap<number, MoeSpec>): LayerPlan {
  const where = `layers[${position}]`;
  const entry = record(value, where, [
    "layer",
    "experts",
    "merge",
    "routerMap",
    "units",
    "down",
    "router",
    "topK",
    "skip",
  ]);
  const layer = integer(entry.layer, `${where}.layer`);
  const spec = specs.get(layer);
  if (!spec) {
    throw invalid(`${where}.layer is ${layer}; the model's MoE layers are ${[...specs.keys()].join(", ")}`);
  }
  const total = spec.experts.length;
  const experts = array(entry.experts, `${where}.experts`).map((expert, i) => {
    const index = integer(expert, `${where}.experts[${i}]`);
    if (index < 0 || index >= total) {
      throw invalid(`${where}.experts[${i}] is ${index}; layer ${layer} has experts 0 to ${total - 1}`);
    }
    return index;
  });
  if (new Set(experts).size !== experts.length) {
    throw invalid(`${where}.experts lists an expert twice: ${experts.join(", ")}`);
  }
  const topK = entry.topK === undefined ? spec.router.topK : integer(entry.topK, `${where}.topK`);
  if (topK < 1) throw invalid(`${where}.topK is ${topK}, expected at least 1`);
  checkKeep(experts.length, total, topK, layer);
  if (spec.router.order === "sparsemixer" && topK !== spec.router.topK) {
    throw invalid(`${where}.topK is ${topK}; this router always chooses ${spec.router.topK} experts`);
  }
  const merge = parseRows(entry.merge, `${where}.merge`, experts.length, total);
  const routerMap = parseRows(entry.routerMap, `${where}.routerMap`, experts.length, total);
  if (routerMap && !acceptsMap(spec.router)) {
    throw invalid(
      `${where}.routerMap works on softmax probabilities of all experts, by which alone this model's router does not choose`,
    );
  }
  const units =
    entry.units === undefined ? undefined : parseUnits(entry.units, `${where}.units`, experts, spec);
  const down =
    entry.down === undefined ? undefined : parseDown(entry.down, `${where}.down`, experts.length, spec);
  const router =
    entry.router === undefined ? undefined : parseRouter(entry.router, `${where}.router`, experts, spec);
  const skip = entry.skip === undefined ? undefined : parseSkip(entry.skip, `${where}.skip`);
  if (routerMap && (router || skip)) {
    throw invalid(
      `${where} has a routerMap and ${router ? "router rows" : "a skip rule"}, which exclude each other`,
    );
  }
  return {
    layer,
    experts,
    ...(merge && { merge }),
    ...(routerMap && { routerMap }),
    ...(units && { units }),
    ...(down !== undefined && { down }),
    ...(router && { router }),
    ...(entry.topK !== undefined && { topK }),
    ...(skip && { skip }),
  };
}

/** Router maps are defined on the softmax over all experts; a correction, groups or a rule would need maps of their own. */
function acceptsMap({ order, correction, groups, skip }: RouterSpec): boolean {
  return order === "softmax-topk" && !correction && !groups && !skip;
}

import { CoppiceError } from "@coppice/core";
import type { Candidate } from "./detect.js";
import { type ExpertPlace, layoutsAt } from "./expert-edits.js";
import type { ExpertLayout } from "./family.js";
import type { NameIndex } from "./name-index.js";

/** Keys under which configs state how many layers for multi-token prediction there are. */
const countKeys = ["num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers"];

/** A layer for multi-token prediction. */
export interface MtpLayer extends ExpertPlace {
  /** What the names of its tensors begin with. */
  readonly prefix: string;
  /** Absent: it has no experts. */
  readonly layout?: ExpertLayout;
}

/**
 * Finds layers for multi-token prediction by name. Their experts follow the plan of the last decoder layer with
 * experts, `last`.
 * @param layers number of decoder layers
 * @throws COPPICE_FORMAT_MTP when there are others than the config states, or a part of one is missing; none at all are
 * no fault, because published configs keep the number after the layers were left out
 */
export function findMtp(candidate: Candidate, layers: number, last: number, index: NameIndex): MtpLayer[] {
  const { family, config, naming } = candidate;
  if (!family.mtp) return [];
  const { at } = family.mtp;
  const decoder = `${naming.body}layers.`;
  const found: MtpLayer[] = [];
  for (const prefix of at === "layers" ? [decoder] : at) {
    for (const number of numbersUnder(prefix, index)) {
      if (at === "layers" && number < layers) continue;
      const own = `${prefix}${number}.`;
      const name = (pattern: string) => naming.name(pattern, number).replace(`${decoder}${number}.`, own);
      const label = `multi-token-prediction layer ${number}`;
      if (at === "layers" && number !== layers + found.length) {
        throw contradiction(`the files have ${own}* and no ${decoder}${layers + found.length}.*`, { label });
      }
      const [layout] = layoutsAt(family.layouts, name, index);
      const missing = missingPart(candidate, layout, name, last, index);
      if (missing !== undefined) throw contradiction(`${missing} of ${label}`, { label });
      found.push({
        layer: last,
        label,
        isMtp: true,
        prefix: own,
        name,
        ...(layout && { layout }),
      });
    }
  }
  const stated = config.get(countKeys) ? config.integer(countKeys, undefined, 0) : undefined;
  // Where blocks of such a layer are numbered one by one (Nemotron-H), those with experts tell the layers.
  const count = at === "layers" ? found.length : found.filter(({ layout }) => layout).length;
  if (count === 0 || stated === undefined || stated === count) return found;
  throw contradiction(
    `the files have ${count} multi-token-prediction layers (${found.map(({ prefix }) => `${prefix}*`).join(", ")}), ` +
      `config.json says ${config.get(countKeys)?.key} is ${stated}`,
    { found: count, stated },
  );
}

/**
 * What a layer lacks, in words: the experts of a router that is there, or what the router of the layer whose plan it
 * follows has beside its weight. Left as it is, the rest would keep the old number of experts.
 */
function missingPart(
  { family, naming }: Candidate,
  layout: ExpertLayout | undefined,
  name: ExpertPlace["name"],
  last: number,
  index: NameIndex,
): string | undefined {
  if (!layout) {
    const router = family.layouts.map((one) => name(one.router)).find((one) => index.has(one));
    return router && `${router} has no experts beside it, the router`;
  }
  const missing = [layout.routerBias, layout.correction].find(
    (one) => one !== undefined && index.has(naming.name(one, last)) && !index.has(name(one)),
  );
  return missing && `tensor ${name(missing)} is missing, which layer ${last} has, the router`;
}

function contradiction(message: string, details: Record<string, unknown>): CoppiceError {
  return new CoppiceError("COPPICE_FORMAT_MTP", message, {
    hint: "the files are of different downloads, or were edited without their config",
    details,
  });
}

function numbersUnder(prefix: string, index: NameIndex): number[] {
  const numbers = new Set<number>();
  for (const name of index.under(prefix)) {
    const match = /^\d+/.exec(name.slice(prefix.length));
    if (match) numbers.add(Number(match[0]));
  }
  return [...numbers].sort((a, b) => a - b);
}

import { CoppiceError } from "@coppice/core";
import type { JsonObject } from "../json-object.js";

/** A single expert by its number, also in a regular expression: `experts.7`, `experts\\.7`. */
const singleExpert = /experts\\*\.\d/;
/** Texts that are patterns and not names of modules. */
const isPattern = /^re:|\\|[*+?]/;

/**
 * Refuses settings of a quantization that name single experts where they cannot be renumbered: keys of objects and
 * regular expressions (`dynamic` of GPTQ, `extra_config` of AutoRound, `re:` of compressed-tensors).
 * @param config the object below `quantization_config`
 * @throws COPPICE_PLAN_EXPORT with the first of them
 */
export function checkExpertPatterns(config: JsonObject, path: string): void {
  for (const [key, value] of Object.entries(config)) {
    const here = `${path}.${key}`;
    if (singleExpert.test(key)) throw refused(here);
    const items = Array.isArray(value) ? value : [value];
    for (const item of items) {
      if (typeof item === "string" && isPattern.test(item) && singleExpert.test(item))
        throw refused(`${here}: ${item}`);
      if (typeof item === "object" && item !== null && !Array.isArray(item)) {
        checkExpertPatterns(item as JsonObject, here);
      }
    }
  }
}

function refused(where: string): CoppiceError {
  return new CoppiceError(
    "COPPICE_PLAN_EXPORT",
    `config.json names a single expert in a way that cannot follow its new number: ${where.slice(0, 200)}`,
    { hint: "replace it by settings for all experts, or by a list of module names", details: { where } },
  );
}

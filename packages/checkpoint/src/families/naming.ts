import type { FamilyDescription } from "./family.js";

/** Fills in and prefixes the tensor names of a family as a checkpoint has them. */
export interface Naming {
  /** What the names of the language model begin with in this checkpoint. */
  readonly body: string;
  /** The checkpoint's name for a pattern of the family. */
  name(pattern: string, layer?: number, expert?: number): string;
}

/** Where the language model lies in checkpoints of models around it: its body, and its head. */
const places: readonly (readonly [body: string, head: string])[] = [
  ["model.", "lm_head"],
  ["language_model.model.", "language_model.lm_head"],
  ["model.language_model.", "lm_head"],
  ["thinker.model.", "thinker.lm_head"],
  ["backbone.", "lm_head"],
];

/** Finds what names begin with by the embedding, which every checkpoint has. */
export function findNaming(family: FamilyDescription, tensors: ReadonlyMap<string, unknown>): Naming {
  const own = [family.body ?? "model.", "lm_head"] as const;
  const candidates = [own, ...places].map(([body, head]) => createNaming(own[0], body, head));
  const found = candidates.find((naming) => tensors.has(naming.name(family.tensors.embedding)));
  return found ?? (candidates[0] as Naming);
}

function createNaming(from: string, body: string, head: string): Naming {
  return {
    body,
    name: (pattern, layer, expert) => {
      const name = pattern.startsWith(from)
        ? body + pattern.slice(from.length)
        : pattern.startsWith("lm_head")
          ? head + pattern.slice("lm_head".length)
          : pattern;
      return fillIn(name, layer, expert);
    },
  };
}

/** Puts numbers in the places of a name. */
export function fillIn(pattern: string, layer?: number, expert?: number): string {
  const name = layer === undefined ? pattern : pattern.replace("{l}", String(layer));
  return expert === undefined ? name : name.replace("{e}", String(expert));
}

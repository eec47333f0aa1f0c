import { firstTokens } from "./cache-tensors.js";
import { type LoadedGraph, Sequence } from "./sequence.js";

/** Shorter beginnings cost less to compute again than to look up and copy. */
const leastReused = 16;

/**
 * The keys and values of sequences that ended, so that a prompt that begins as one of them did (the next turn of a
 * conversation, the same instructions) continues from there. The least recently used one goes first.
 */
export class KeptPrefixes {
  readonly #graph: LoadedGraph;
  readonly #most: number;
  /** Oldest first. */
  #kept: Sequence[] = [];

  /** @param most sequences that are kept; 0 keeps none */
  constructor(graph: LoadedGraph, most: number) {
    this.#graph = graph;
    this.#most = most;
  }

  /** A sequence that holds as much of the beginning of `prompt` as is kept, but never all: its last token has to run. */
  begin(prompt: Int32Array, wantsExperts: boolean): Sequence {
    const [longest, kept] = this.#longest(prompt);
    if (!kept || longest < leastReused || wantsExperts) {
      return new Sequence(this.#graph, [], undefined, wantsExperts);
    }
    this.#kept = this.#kept.filter((other) => other !== kept);
    // Exactly what the prompt continues goes to the new sequence; a longer one stays for others.
    if (longest === kept.tokens.length) return new Sequence(this.#graph, kept.tokens, kept.past);
    this.#kept.push(kept);
    const past = firstTokens(this.#graph, kept.past, kept.tokens.length, longest);
    return new Sequence(this.#graph, past ? kept.tokens.slice(0, longest) : [], past);
  }

  /** Takes over a sequence that ended. */
  end(sequence: Sequence): void {
    const stay = this.#kept.filter((kept) => !begins(kept, sequence));
    const gone = this.#kept.filter((kept) => begins(kept, sequence));
    const isNew = sequence.tokens.length >= leastReused && !stay.some((kept) => begins(sequence, kept));
    (isNew ? stay : gone).push(sequence);
    gone.push(...stay.splice(0, Math.max(0, stay.length - this.#most)));
    this.#kept = stay;
    for (const old of gone) old.dispose();
  }

  clear(): void {
    for (const kept of this.#kept.splice(0)) kept.dispose();
  }

  #longest(prompt: Int32Array): [number, Sequence | undefined] {
    let longest = 0;
    let found: Sequence | undefined;
    for (const kept of this.#kept) {
      const most = Math.min(kept.tokens.length, prompt.length - 1);
      let common = 0;
      while (common < most && kept.tokens[common] === prompt[common]) common++;
      if (common > longest) [longest, found] = [common, kept];
    }
    return [longest, found];
  }
}

/** True when `longer` begins with all tokens of `shorter`. */
function begins(shorter: Sequence, longer: Sequence): boolean {
  return shorter.tokens.every((token, i) => longer.tokens[i] === token);
}

import type { Rng } from "@coppice/core";
import {
  indexAt,
  type LongContextOptions,
  type LongContextTask,
  longContextTask,
  type SampleMaker,
} from "./long-context-task.js";
import { adjectives, nouns } from "./long-context-words.js";

/** Pairs of words in an order that looks random: steps of a prime that does not divide their number. */
const pairCount = nouns.length * adjectives.length;
const pairStep = 10_007;

/**
 * Retrieval among many keys: a list of keys with codes of five digits that fills the whole length, and a question for one of them. Every
 * line could have been asked for, so a model has to keep all of them. Keys are common nouns, in longer lists with adjectives before
 * them.
 * @throws COPPICE_USAGE, COPPICE_TASK_TOO_LONG for lengths beyond the model's context
 */
export function retrievalTask(options: LongContextOptions): LongContextTask {
  return longContextTask("retrieval", "exact-match", options, codes);
}

function codes(rng: Rng): SampleMaker {
  const plain = rng.shuffle([...nouns]);
  const start = rng.integer(pairCount);
  const codeOf: string[] = [];
  const keyOf = (i: number): string => {
    if (i < plain.length) return plain[i] as string;
    const at = i - plain.length;
    const pair = (start + at * pairStep) % pairCount;
    const words = `${adjectives[pair % adjectives.length]} ${nouns[Math.floor(pair / adjectives.length)]}`;
    // Lists beyond half a million tokens.
    const round = Math.floor(at / pairCount);
    return round === 0 ? words : `${words} ${round + 1}`;
  };
  const code = (i: number): string => {
    while (codeOf.length <= i) codeOf.push(String(10_000 + rng.integer(90_000)));
    return codeOf[i] as string;
  };
  return {
    part: (i) => `The code for ${keyOf(i)} is ${code(i)}.\n`,
    ask(parts, depth) {
      const at = indexAt(depth, parts.length);
      return {
        parts,
        answer: ` ${code(at)}`,
        prompt: (lines) => `${lines.join("")}Question: What is the code for ${keyOf(at)}?\nAnswer:`,
      };
    },
  };
}
